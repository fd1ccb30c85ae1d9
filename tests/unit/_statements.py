"""Statements by their kind, for the tests of the lexer and for those on a real server.

The tables are `t (a int, b int, c text, j jsonb, at timestamptz, r u)` and `u (a int, d text)`.
"""

from __future__ import annotations

READS = r"""
SELECT 1
select
SELECT * FROM t
sElEcT a FrOm t
SELECT 1;
SELECT 1 ; ;
;SELECT 1
(SELECT 1)
((SELECT 1) UNION (SELECT 2))
(SELECT a FROM t) ORDER BY 1 LIMIT 1
VALUES (1, 'a'), (2, 'b')
TABLE t
WITH x AS (SELECT 1) SELECT * FROM x
WITH x(p, q) AS (SELECT 1, 2), y(z) AS (VALUES (1)) SELECT * FROM x, y
WITH RECURSIVE x(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM x WHERE n < 5) SELECT * FROM x
WITH "x" AS (SELECT 1), "y"(b) AS (SELECT 2) SELECT * FROM "x", "y"
WITH RECURSIVE "x"(n) AS (SELECT 1) SELECT * FROM x
WITH recursive(n) AS (SELECT 1) SELECT * FROM recursive
WITH x AS MATERIALIZED (SELECT 1), y AS NOT MATERIALIZED (SELECT 2) SELECT * FROM x, y
WITH x AS (WITH y(a) AS (SELECT 1), z(b) AS (SELECT 2) SELECT * FROM y, z) TABLE x
SELECT * FROM (WITH x(a) AS (SELECT 1) SELECT * FROM x) AS y(b)
SELECT (WITH x(a) AS (SELECT 1) SELECT a FROM x)
SELECT 1 -- trailing
SELECT 1 /* trailing */
/* leading */ -- and
SELECT 1 /* INTO x; /* FOR UPDATE */ nextval('a') */ + 1
SELECT 'INTO x; FOR UPDATE; nextval(1)'
SELECT 'it''s', E'it\'s', E'\\', U&'\0061', U&'!0061' UESCAPE '!', B'01', X'1F', N'a'
SELECT 'a' AS "into", 1 AS "for", 2 AS "it""s", 3 AS "update"
SELECT $$INTO; '$$, $a$ $$ FOR UPDATE $b$ $a$
SELECT 'a\b', c LIKE 'a\_%', c ~ '^\d+$' FROM t
SELECT 1 AS a$b$c
SELECT 1.5, .5, 1., 1e10, 1.5e-3
SELECT 5 % 2, 5%2, -1, +1, 2 ^ 3, |/ 4, @ -1, 1 << 2, ~ 1, 1 # 2
SELECT a AS x, b y, c "z" FROM t AS tt WHERE tt.a = 1
SELECT t.* FROM t
SELECT (t).* FROM t
SELECT (t.r).* FROM t
SELECT t.r FROM t
SELECT a FROM public.t
SELECT public.t.a FROM public.t
SELECT DISTINCT a FROM t
SELECT DISTINCT ON (a) a, lower(c) FROM t ORDER BY a, b
SELECT DISTINCT ON (a, b) * FROM t
SELECT ALL a FROM t
SELECT a FROM t WHERE a = 1 AND (b = 2 OR NOT (b = 3)) AND NOT EXISTS (SELECT 1 FROM u)
SELECT a FROM t WHERE a IN (1, 2) AND b NOT IN (SELECT a FROM u)
SELECT a FROM t WHERE a = ANY (ARRAY[1, 2]) OR a > ALL (SELECT 1) OR a = SOME ('{1}'::int[])
SELECT a FROM t WHERE a BETWEEN (1) AND (2) OR a BETWEEN SYMMETRIC (2) AND (1)
SELECT a FROM t WHERE c LIKE ('a%') OR c NOT LIKE ('b') OR c ILIKE ('c') OR c NOT ILIKE ('d')
SELECT a FROM t WHERE c LIKE 'a!%' ESCAPE '!' OR c SIMILAR TO ('a|b')
SELECT a FROM t WHERE (at, at) OVERLAPS (now(), interval '1 day')
SELECT a FROM t WHERE a IS NULL OR a IS NOT DISTINCT FROM b OR a IS NOT DISTINCT FROM (b)
SELECT a FROM t WHERE (a, b) = (1, 2) OR ROW(a, b) < ROW(1, 2)
SELECT count(*), count(DISTINCT a), sum(a) FILTER (WHERE b > 1) FROM t
SELECT a, count(*) FROM t GROUP BY a HAVING count(*) > 1 ORDER BY 2 DESC NULLS LAST
SELECT a, b, count(*) FROM t GROUP BY (a), (b)
SELECT a, b, count(*) FROM t GROUP BY GROUPING SETS ((a), (b), ())
SELECT a, b, count(*) FROM t GROUP BY ROLLUP (a, b)
SELECT a, b, grouping(a) FROM t GROUP BY CUBE (a), ROLLUP (b)
SELECT a, b FROM t GROUP BY a, CUBE (b)
SELECT a, b FROM t GROUP BY GROUPING SETS (ROLLUP (a, b), CUBE (a, b))
SELECT sum(a) OVER (PARTITION BY b ORDER BY a ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t
SELECT sum(a) FILTER (WHERE a > 1) OVER () FROM t
SELECT row_number() OVER w, lag(a, 1) OVER (w) FROM t WINDOW w AS (PARTITION BY (b) ORDER BY (a))
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a), mode() WITHIN GROUP (ORDER BY b) FROM t
SELECT string_agg(c, ',' ORDER BY a), array_agg(a ORDER BY b DESC), json_agg(t) FROM t
SELECT a FROM t ORDER BY (a), lower(c) COLLATE "C" LIMIT (1) OFFSET (0)
SELECT a FROM t ORDER BY a USING < FETCH FIRST (2) ROWS ONLY
SELECT a FROM t ORDER BY a FETCH FIRST 1 ROW WITH TIES
SELECT 1 UNION ALL (SELECT 2) INTERSECT (SELECT 2) EXCEPT (SELECT 3)
SELECT * FROM t, u WHERE t.a = u.a
SELECT * FROM t JOIN u ON (t.a = u.a)
SELECT * FROM t JOIN u USING (a)
SELECT * FROM t LEFT JOIN (u CROSS JOIN u AS v) ON t.a = u.a
SELECT * FROM t JOIN (SELECT a FROM u) AS x(a) USING (a) NATURAL JOIN (SELECT 1 AS a) y
SELECT * FROM t FULL OUTER JOIN (SELECT 1 AS a) x USING (a) INNER JOIN (VALUES (1)) y(z) ON true
SELECT * FROM (SELECT 1) x JOIN (SELECT 2) y ON true
SELECT * FROM "t" JOIN (SELECT 2) y ON true
SELECT * FROM t tt JOIN (SELECT 2) y ON true
SELECT * FROM ONLY t, ONLY (u)
SELECT * FROM t TABLESAMPLE BERNOULLI (10) REPEATABLE (1)
SELECT * FROM t TABLESAMPLE SYSTEM (10)
SELECT * FROM generate_series(1, 3)
SELECT * FROM generate_series(1, 3) AS g
SELECT * FROM generate_series(1, 3) g(n)
SELECT g FROM generate_series(1, 3) AS g(n)
SELECT * FROM generate_series(1, 3) WITH ORDINALITY AS g(n, m)
SELECT * FROM generate_series(1, 3) WITH ORDINALITY g(n, m)
SELECT * FROM ROWS FROM (generate_series(1, 3), generate_series(1, 2)) AS x(a, b)
SELECT * FROM t, LATERAL (SELECT t.a) AS x, LATERAL generate_series(1, t.a) AS y
SELECT * FROM t CROSS JOIN LATERAL jsonb_each(t.j) AS x(k, v)
SELECT * FROM json_to_record('{"a": 1}') AS x(a int, b numeric(10, 2))
SELECT * FROM jsonb_to_recordset('[{"a": 1}]') x(a int, b text)
SELECT * FROM (VALUES (1, 'a'), (2, 'b')) v(x, y)
SELECT * FROM unnest(ARRAY[1, 2], ARRAY['a', 'b']) AS x(a, b)
SELECT ARRAY[1, 2], ARRAY(SELECT 1), (ARRAY[1, 2])[1], (ARRAY[1, 2])[1:2], ARRAY[[1], [2]]
SELECT CASE WHEN (a = 1) THEN (2) ELSE (3) END, CASE (a) WHEN (1) THEN lower('A') END FROM t
SELECT coalesce(a, 1), nullif(a, 1), greatest(a, b), least(1, 2) FROM t
SELECT CAST(a AS numeric(10, 2)), a::numeric(10, 2), a::text, CAST('1' AS int) FROM t
SELECT a::bigint::text, '{1}'::int[], 'a'::varchar(10), 'a'::character varying(10) FROM t
SELECT '101'::bit(3), '101'::bit varying(3), 'a'::char(3), 'a'::national character varying(3)
SELECT timestamp(3) '2026-01-01 10:00', now()::timestamp(3) with time zone, interval '1' day
SELECT DATE '2026-01-01', timestamptz '2026-01-01', interval(3) '1 second'
SELECT at AT TIME ZONE 'UTC', at AT TIME ZONE ('UTC') FROM t
SELECT 't'::regclass, 'int4'::regtype, to_regclass('t')
SELECT extract(epoch FROM now()), extract('year' from at) FROM t
SELECT substring('abc' FROM 1 FOR 2), substring('abc' for 2), substring('abc', 1, 2)
SELECT overlay('abc' placing 'x' from 1 for 2), position('a' in 'abc')
SELECT trim('  a '), trim(both 'x' from 'xax'), trim(leading from ' a'), trim(trailing from 'x')
SELECT normalize('a'), normalize('a', NFC), 'a' IS NORMALIZED, is_normalized('a', 'NFC')
SELECT xmlelement(name a, xmlattributes('x' AS b), 'c'), xmlforest('a' AS b), xmlpi(name php)
SELECT xmlconcat('<a/>', '<b/>'), xmlparse(content 'a'), xmlserialize(content '<a/>' AS text)
SELECT xmlexists('//a' PASSING '<a/>'), xmlroot('<a/>', version '1.0'), xpath('/a', '<a/>')
SELECT * FROM xmltable('/r' PASSING xmlparse(document '<r/>') COLUMNS i FOR ORDINALITY, a int)
SELECT json_object('{a,b}'), json_build_object('a', 1), row_to_json(t), to_jsonb(t) FROM t
SELECT j -> 'a', j ->> 'a', j #> '{a}', j @> '{}', j ? 'a', j ?| array['a'], j @? '$.a' FROM t
SELECT jsonb_path_query(j, '$.a[*]'), jsonb_set(j, '{a}', '1') FROM t
SELECT current_user, session_user, current_date, current_timestamp, localtime
SELECT current_timestamp(3), localtimestamp(0), current_time(0)
SELECT now(), clock_timestamp(), random(), gen_random_uuid(), version(), pg_backend_pid()
SELECT current_setting('work_mem'), current_setting('x.y', true), pg_typeof(1)
SELECT pg_catalog.lower('A'), pg_catalog."upper"('a'), "lower"('A'), PG_CATALOG.Length('a')
SELECT lower ( 'A' ), lower/* x */('A')
SELECT concat(VARIADIC ARRAY['a', 'b']), make_interval(days => 1), make_interval(days := 1)
SELECT left('abc', 1), right('abc', 1), like('a', 'b'), date('2026-01-01'), text('a'), int4(1.5)
SELECT to_tsvector('simple', 'a b') @@ to_tsquery('a'), ts_rank('a:1', 'a'), 'a' <-> 'b'::tsquery
SELECT point(1, 2) <-> point(3, 4), box(point(0, 0), point(1, 1)), circle(point(0, 0), 1)
SELECT int4range(1, 3) && int4range(2, 4), lower(int4range(1, 3))
SELECT host('10.0.0.1'), network('10.0.0.0/8'), masklen('10.0.0.0/8'::cidr)
SELECT md5('a'), sha256('a'), encode('a', 'hex'), hashtext('a')
SELECT relname FROM pg_class JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
SELECT pid, state FROM pg_stat_activity
SELECT a AS lock, b AS share, c AS no FROM t
SELECT (now()).date, (5).int4, ('A'::text).lower
SELECT NOT (true), (1) = (1), - (1), 1 - -1, 1 -(-1)
SELECT exists(SELECT 1), array(SELECT 1), any_row.a FROM t AS any_row
SELECT éa FROM (SELECT 1) AS x(éa)
"""
"""Plain reads that every supported server accepts."""

PARAMETERS = r"""
SELECT %s
SELECT * FROM t WHERE a = %s AND b = %(b)s
SELECT * FROM t WHERE a=%s
SELECT * FROM t WHERE a = $1 AND b = ANY ($2)
SELECT %s::int + %b, %t
SELECT lower(%s), coalesce(%(x)s, 1), %(y)s::numeric(10, 2)
SELECT '%s', "%s", 5 %% 2, 'a%%'
SELECT * FROM t WHERE c LIKE %s || '%%' AND a IN (%s, %s)
SELECT * FROM t WHERE (a, b) IN ((%s, %s))
SELECT * FROM t LIMIT %s OFFSET %s
SELECT * FROM t WHERE j @> %s AND at > %(since)s - interval '1 day'
SELECT unnest(%s::int[]), 'a'
SELECT a %% %s FROM t
"""
"""Plain reads with placeholders."""

NEWER = r"""
SELECT substring('abc' similar 'a#"b#"c' escape '#')
SELECT * FROM t JOIN u USING (a) AS x
SELECT json_value('{"a": 1}', '$.a' RETURNING int DEFAULT length('A') ON EMPTY)
SELECT json_exists('{"a": 1}', '$.a' PASSING 1 AS x), json_query('{"a": 1}', '$.a' WITH WRAPPER)
SELECT * FROM json_table('[1]', '$[*]' COLUMNS (i FOR ORDINALITY, a int PATH '$'))
SELECT * FROM json_table('[1]', '$[*]' PASSING 1 AS x COLUMNS (NESTED PATH '$' COLUMNS (a int)))
SELECT json_object('a' VALUE 1), json_object('a': 1), json_array(1, 2), json_arrayagg(a) FROM t
SELECT json('{}'), json_scalar(1), json_serialize('{}'), '{}' IS JSON OBJECT
SELECT 1_000, 0x1F, 0b01, 0o17
SELECT system_user
"""
"""Plain reads of newer servers than the oldest; all of them are read by PostgreSQL 17."""

SINGLES = r"""
INSERT INTO t VALUES (1)
insert into t (a) values (%s) returning a
INSERT INTO t (c) VALUES ('a;b')
INSERT INTO t (c) VALUES ('a') ;
UPDATE t SET a = 1 WHERE b = $1
DELETE FROM t
MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE
WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x
WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x
WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM x
WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x
WITH x AS (SELECT 1), y AS (MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE) SELECT 1
/* */ INSERT INTO t VALUES (1)
WITH "x" AS (SELECT 1) SELECT foo(1)
WITH "x"(a) AS (SELECT 1), "y"(b) AS (SELECT 2) SELECT foo(1)
WITH recursive AS (SELECT 1) SELECT foo(1)
WITH RECURSIVE "x" AS (SELECT 1) SELECT foo(1)
WITH RECURSIVE recursive AS (SELECT 1) SELECT foo(1)
WITH x(a) AS (SELECT foo(1)) SELECT 1
WITH x AS (SELECT 1) SELECT *, foo(1) FROM x
WITH x AS (SELECT 1) SEARCH DEPTH FIRST BY a, foo(1) SET b SELECT 1
SELECT * FROM t FOR UPDATE
SELECT * FROM t FOR NO KEY UPDATE
SELECT * FROM t FOR SHARE
SELECT * FROM t FOR KEY SHARE SKIP LOCKED
SELECT * FROM t FOR/**/UPDATE
SELECT * FROM t for -- x
SELECT * FROM (SELECT * FROM t FOR UPDATE) AS x
SELECT substring((SELECT c FROM t FOR UPDATE) from 1)
SELECT substring('a' from 1 for 2) FROM t FOR UPDATE
TABLE t FOR UPDATE
SELECT a INTO x FROM t
SELECT 1 INTO TEMP x
SELECT a FROM t UNION SELECT 1 INTO x
SELECT 1 AS into_, a AS INTO FROM t
SELECT date_bin('1 hour', at, '2001-01-01') FROM t
SELECT regexp_count(c, 'a') FROM t
SELECT a FROM t, string_to_table('a', 'b')
SELECT "extract"('year', at) FROM t
SELECT nextval('s')
SELECT NEXTVAL('s')
SELECT "nextval"('s')
SELECT pg_catalog.nextval('s')
SELECT pg_catalog . nextval ('s')
SELECT currval('s'), lastval()
SELECT setval('s', 1)
SELECT set_config('a.b', '1', false)
SELECT pg_advisory_lock(1)
SELECT pg_advisory_xact_lock(1)
SELECT pg_try_advisory_lock(1)
SELECT pg_sleep(1)
SELECT pg_notify('a', 'b')
SELECT pg_cancel_backend(1), pg_terminate_backend(1)
SELECT lo_create(0), lo_get(1)
SELECT txid_current(), pg_current_xact_id()
SELECT pg_export_snapshot()
SELECT setseed(0.5)
SELECT query_to_xml('DELETE FROM t', true, true, '')
SELECT table_to_xml('t', true, true, ''), database_to_xml(true, true, '')
SELECT ts_stat('DELETE FROM t'), ts_rewrite('a', 'SELECT 1')
SELECT pg_read_file('x'), pg_ls_dir('.')
SELECT pg_relation_size('t'), pg_total_relation_size('t'), pg_database_size('x')
SELECT pg_reload_conf(), pg_rotate_logfile(), pg_switch_wal(), pg_promote()
SELECT dblink('', 'DELETE FROM t')
SELECT foo(1)
SELECT foo (1)
SELECT foo/**/(1)
SELECT "foo"(1)
SELECT "Lower"('a')
SELECT " lower"('a')
SELECT U&"lower"('a')
SELECT U&"\006Cower"('a')
SELECT public.lower('a')
SELECT "public".lower('a')
SELECT x.pg_catalog.lower('a')
SELECT pg_catalog.foo(1)
SELECT "PG_CATALOG".lower('a')
SELECT x.lower('a')
SELECT lowér('a')
SELECT * FROM foo(1)
SELECT * FROM t, foo(1)
SELECT * FROM t, foo(a) AS (x int)
SELECT * FROM t JOIN foo(1) ON true
SELECT * FROM LATERAL foo(1) x
SELECT * FROM ROWS FROM (foo(1))
SELECT * FROM t WHERE foo(a)
SELECT * FROM t ORDER BY foo(a)
SELECT * FROM t GROUP BY foo(a)
SELECT * FROM t LIMIT foo(1)
SELECT foo(lower('a')), lower(foo('a'))
SELECT DISTINCT ON (a) foo(a) FROM t
SELECT DISTINCT ON (a) over(a) FROM t
SELECT DISTINCT ON (a) repeatable(a) FROM t
SELECT CASE foo(1) WHEN 1 THEN 2 END
SELECT ARRAY[foo(1)], (ARRAY[1])[foo(1)], ROW(foo(1))
SELECT 1 = ANY (foo(1))
SELECT NOT foo(1), -foo(1), 1 + foo(1)
SELECT over(1)
SELECT filter(1)
SELECT by(1)
SELECT sets(1)
SELECT cube(1)
SELECT rollup(1)
SELECT materialized(1), NOT materialized(1)
SELECT varying(1), zone(1), repeatable(1), columns(1), join(1), ilike('a', 'b'), NOT ilike('a', 'b')
SELECT * FROM t ORDER BY cube(a)
SELECT sum(a) OVER (PARTITION BY cube(a)) FROM t
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a), cube(a) FROM t
SELECT * FROM t JOIN u ON join(1)
SELECT * FROM t JOIN u ON true AND join(1)
SELECT * FROM t WHERE join(1) AND a ILIKE ilike('a')
SELECT escape('a'), passing(1), path2(1), ordinality(1), recursive(1), system(1), bernoulli(1)
SELECT 1 OPERATOR(pg_catalog.+) 2
SELECT (1) OPERATOR(public.+) (2)
SELECT (1) OPERATOR(pg_catalog.+) foo(2)
SELECT (5).pg_sleep
SELECT TREAT(5 AS setseed)
SELECT treat ('f()'::regprocedure::oid AS fmgr_sql_validator)
SELECT g.fmgr_sql_validator FROM unnest(ARRAY['f()'::regprocedure::oid]) AS g
SELECT current_schema
SELECT current_schema()
SELECT pg_catalog.current_schemas(true)
SELECT (t).foo FROM t
SELECT $1.pg_sleep
SELECT %s.pg_sleep
SELECT %s.a
SELECT (ARRAY[1])[1].foo
SELECT a[1].foo FROM t
SELECT g.pg_sleep FROM generate_series(1, 1) AS g
SELECT g.nextval FROM generate_series(1, 1) AS g
SELECT g.set_config, g."setseed" FROM generate_series(1, 1) AS g
SELECT * FROM pg_locks
SELECT * FROM pg_sequences
SELECT * FROM pg_cursors
SELECT a AS "pg_sleep" FROM t
SELECT U&"a" FROM t
SELECT collation for ('a')
SELECT json_table2(1)
SELECT current_query()
SELECT 1) + (1
SELECT xmltable(foo('a') PASSING '<a/>' COLUMNS a int)
SELECT * FROM xmltable('/a' PASSING foo('a') COLUMNS a int PATH foo('a'))
SELECT '¥'
SELECT '‾', "₩"
SELECT a %(b)s, c %(nextval)s
SELECT %(into)s
"""
"""One statement each, which may do more than read, or for which that is not certain."""

OTHERS = r"""
SELECT (1
SELECT 1)
SELECT ()1)
SELECT (1; 2)
SELECT 1; SELECT 2
SELECT 1; INSERT INTO t VALUES (1)
INSERT INTO t VALUES (1); SELECT 1
SELECT 1 --x;SELECT 2
SELECT '1' ; SELECT '2'
SELECT 1;;SELECT 2
;
--
/* SELECT 1 */
-- SELECT 1
SET x = 1
RESET x
SHOW x
BEGIN
START TRANSACTION
COMMIT
ROLLBACK
SAVEPOINT a
LISTEN x
NOTIFY x
COPY t TO STDOUT
EXPLAIN SELECT 1
EXPLAIN ANALYZE DELETE FROM t
CREATE TABLE x (a int)
CREATE TABLE x AS SELECT 1
DROP TABLE x
ALTER TABLE t ADD x int
TRUNCATE t
VACUUM
ANALYZE t
CALL p()
DO $$ BEGIN END $$
DECLARE c CURSOR FOR SELECT 1
FETCH c
PREPARE p AS SELECT 1
EXECUTE p
LOCK TABLE t
REFRESH MATERIALIZED VIEW v
selection
"select" 1
'select'
$$SELECT 1$$
(
()
1
%s
SELECT 'a
SELECT "a
SELECT $$a
SELECT $a$ $$
SELECT E'a\'
SELECT /* 1
SELECT /* /* */ 1
SELECT U&'a
SELECT U&"a
SELECT 1a
SELECT 1e'x'
SELECT $1a
SELECT 0x'1'
SELECT {1}
SELECT \1
SELECT $ 1
SELECT 'a\' , 'b'
SELECT 'a\'; SELECT 'b'
SELECT '\', '; INSERT INTO t VALUES (1); --'
SELECT 5 %(a'b)s, '
SELECT 'a%(b'; c)s'
SELECT %(a"b)s
SELECT %(a/*b)s
SELECT '¥'; SELECT 1
SELECT '%s' %(x;y)s
\N{LATIN SMALL LETTER LONG S}elect 1
"""
"""Several statements, none, those of other kinds, and what is not understood."""


def lines(text: str) -> list[str]:
    """The statements of one of these texts, without its blank lines."""
    return [line for line in text.strip("\n").split("\n") if line]
