-- Three roles with the least rights that keyhold needs. Run it once in the database, before the tables are made, as a
-- user who may create roles and owns the schema. The tables' prefix is kms: put another one here and in grants.sql if
-- yours have it. Their schema is public, in the last three statements alone: where it is another one, make it first.
-- Roles belong to the whole server: for a second database, give them other names, or their members have them in both.
--
-- Nobody logs in as one of these roles. Users are made members:
--
--     create role billing login password '...' in role kms_application;

-- The application: makes keys, seals, opens, rotates and rewraps. It cannot delete a key or touch the root slots. As
-- rewrapping replaces wrapped keys, a program with this role that runs wild can put something useless in their place.
create role kms_application nologin;

-- People, at times: all that the application may, and what cannot be undone.
create role kms_operator nologin;
grant kms_application to kms_operator;

-- "keyhold migrate up": owns the tables, and so could turn off their rules. Nothing that runs all day should.
create role kms_migration nologin;

-- PostgreSQL 14 lets everybody make tables in public; who can put a function or an operator there could have others run
-- it. This takes that right from the application's own migrations, too: grant it to whoever runs those.
revoke create on schema public from public;
grant usage on schema public to kms_application, kms_operator;
grant usage, create on schema public to kms_migration;
