-- The tables are complete: a program that knows schema version 1 works with them from here on.
insert into {schema}{prefix}_schema_version (only_row, version) values (1, 1);
