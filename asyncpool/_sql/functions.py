"""Built-in functions known to be harmless, and names that show that a statement may not be.

A harmless function does not write, lock, wait, send a signal, read files, run SQL text from its
arguments, take a transaction id, leave state in the session, or depend on such state. Each listed
function is in `pg_catalog` of every supported version: where `date_bin` or `regexp_count` is not,
it is a function of the user's. No function with a listed name is volatile, except those in
`VOLATILE`.
"""

from __future__ import annotations

from asyncpool._sql.keywords import words

_AGGREGATES = """
    array_agg avg bit_and bit_or bool_and bool_or count every max min sum string_agg
    json_agg json_object_agg jsonb_agg jsonb_object_agg xmlagg
    corr covar_pop covar_samp regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope
    regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp var_pop var_samp variance
    mode percentile_cont percentile_disc
"""
_WINDOWS = """
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value
    nth_value
"""
_NUMBERS = """
    abs cbrt ceil ceiling degrees div exp factorial floor gcd lcm ln log log10 min_scale
    mod pi pow power radians round scale sign sqrt trim_scale trunc width_bucket
    acos acosd asin asind atan atan2 atan2d atand cos cosd cot cotd sin sind tan tand
    acosh asinh atanh cosh sinh tanh
    int2 int4 int8 float4 float8 numeric money oid bool
"""
_TEXTS = """
    ascii bit_length btrim char_length character_length chr concat concat_ws convert
    convert_from convert_to decode encode format initcap left length like like_escape lower lpad
    ltrim md5 normalize is_normalized notlike octet_length overlay parse_ident position
    quote_ident quote_literal quote_nullable regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table repeat replace reverse right rpad rtrim
    split_part starts_with string_to_array strpos substr substring text to_ascii to_char to_hex
    to_number translate upper varchar bpchar name get_bit get_byte set_bit set_byte sha224
    sha256 sha384 sha512 hashtext hashtextextended hashint4 hashint4extended hashint8
    hashint8extended
"""
_TIMES = """
    age date date_part date_trunc isfinite justify_days justify_hours justify_interval make_date
    make_interval make_time make_timestamp make_timestamptz now statement_timestamp
    transaction_timestamp overlaps timezone to_date to_timestamp time timetz timestamp
    timestamptz interval
"""
_ARRAYS = """
    array_append array_cat array_dims array_fill array_length array_lower array_ndims
    array_position array_positions array_prepend array_remove array_replace array_to_json
    array_to_string array_upper cardinality unnest generate_series generate_subscripts
    num_nonnulls num_nulls
"""
_JSON = """
    json_array_elements json_array_elements_text json_array_length json_build_array
    json_build_object json_each json_each_text json_extract_path json_extract_path_text json_object
    json_object_keys json_populate_record json_populate_recordset json_strip_nulls json_to_record
    json_to_recordset json_typeof row_to_json to_json to_jsonb
    jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array
    jsonb_build_object jsonb_concat jsonb_contains jsonb_contained jsonb_each jsonb_each_text
    jsonb_exists jsonb_exists_all jsonb_exists_any jsonb_extract_path jsonb_extract_path_text
    jsonb_insert jsonb_object jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz
    jsonb_path_match jsonb_path_match_tz jsonb_path_query jsonb_path_query_array
    jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz jsonb_path_query_tz
    jsonb_populate_record jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax
    jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof
"""
_RANGES = """
    int4range int8range numrange tsrange tstzrange daterange isempty lower_inc lower_inf
    upper_inc upper_inf range_merge
"""
_GEOMETRY = """
    area box bound_box center circle diagonal diameter height isclosed isopen line lseg npoints
    path pclose point polygon popen radius slope width
"""
_NETWORK = """
    abbrev broadcast family host hostmask inet_merge inet_same_family masklen netmask network
    set_masklen macaddr8_set7bit
"""
_TEXT_SEARCH = """
    array_to_tsvector get_current_ts_config json_to_tsvector jsonb_to_tsvector numnode
    phraseto_tsquery plainto_tsquery querytree setweight strip to_tsquery to_tsvector ts_delete
    ts_filter ts_headline ts_rank ts_rank_cd tsquery_phrase tsvector_to_array websearch_to_tsquery
"""
_ENUMS = "enum_first enum_last enum_range"
_XML = """
    xml xmlcomment xpath xpath_exists xml_is_well_formed xml_is_well_formed_content
    xml_is_well_formed_document
"""
# These read the catalogs or the backend's own state, and lock only catalogs, for reading.
_SESSION = """
    current_database current_setting getdatabaseencoding
    inet_client_addr inet_client_port inet_server_addr inet_server_port pg_backend_pid
    pg_client_encoding pg_conf_load_time pg_postmaster_start_time version
    pg_column_size pg_size_bytes pg_size_pretty pg_typeof pg_wal_lsn_diff
    pg_walfile_name
"""
_CATALOG = """
    format_type col_description obj_description shobj_description pg_encoding_to_char
    pg_get_userbyid pg_has_role has_any_column_privilege has_column_privilege
    has_database_privilege has_function_privilege has_language_privilege has_schema_privilege
    has_sequence_privilege has_server_privilege has_table_privilege has_tablespace_privilege
    has_type_privilege pg_function_is_visible pg_table_is_visible pg_type_is_visible
    to_regclass to_regnamespace to_regoper to_regoperator to_regproc to_regprocedure to_regrole
    to_regtype to_regcollation
"""
# These return another value at each call and have no other effect.
VOLATILE = words(
    """
    clock_timestamp gen_random_uuid random timeofday
    pg_is_in_recovery pg_current_wal_lsn pg_current_wal_insert_lsn pg_current_wal_flush_lsn
    pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
    """
)
"""Volatile built-in functions that are harmless for a reader."""

HARMLESS = VOLATILE.union(
    *map(words, (_AGGREGATES, _WINDOWS, _NUMBERS, _TEXTS, _TIMES, _ARRAYS, _JSON, _RANGES)),
    *map(words, (_GEOMETRY, _NETWORK, _TEXT_SEARCH, _ENUMS, _XML, _SESSION, _CATALOG)),
)
"""Functions that a plain read may call."""

RELATIONS = words(
    """
    pg_catalog
    pg_am pg_attrdef pg_attribute pg_authid pg_auth_members pg_class pg_collation pg_constraint
    pg_database pg_depend pg_description pg_enum pg_extension pg_index pg_inherits pg_language
    pg_namespace pg_opclass pg_operator pg_proc pg_range pg_roles pg_sequence pg_shdepend
    pg_tables pg_tablespace pg_trigger pg_type pg_user
    pg_stat_activity pg_stat_database pg_stat_user_tables pg_stat_user_indexes
    """
)
"""Names beginning with "pg_" of catalogs, and of views that call only harmless functions."""

HARMFUL = words(
    """
    currval lastval nextval setval set_config setseed txid_current
    currtid2 currtid lo_close lo_creat lo_create lo_export lo_from_bytea lo_get lo_import lo_lseek
    lo_lseek64 lo_open lo_put lo_tell lo_tell64 lo_truncate lo_truncate64 lo_unlink loread lowrite
    query_to_xml query_to_xml_and_xmlschema query_to_xmlschema cursor_to_xml cursor_to_xmlschema
    table_to_xml table_to_xml_and_xmlschema table_to_xmlschema schema_to_xml
    schema_to_xml_and_xmlschema schema_to_xmlschema database_to_xml database_to_xml_and_xmlschema
    database_to_xmlschema ts_rewrite ts_stat brin_desummarize_range brin_summarize_new_values
    brin_summarize_range gin_clean_pending_list txid_status amvalidate random_normal
    plpgsql_validator fmgr_c_validator fmgr_internal_validator fmgr_sql_validator
    current_schema current_schemas
    """
)
"""Built-in functions that are not harmless and whose names do not begin with "pg_".

Such a function can be called like a column: `SELECT g.setseed FROM generate_series(1, 1) AS g`.
A validator parses the body of a function, which locks tables or loads a library. `current_schema`,
a function or a bare word, creates the temporary schema where that is the first of `search_path`.
"""
