-- What each role of roles.sql may do with the tables. Run it as the tables' owner, a member of kms_migration, after
-- every "keyhold migrate up". Running it again changes nothing. It names no schema: where the tables are in one that the
-- search_path does not find, begin with "set search_path = ...;".

-- Application.

grant select on
    kms_schema_version, kms_installation, kms_installation_key, kms_root_slot, kms_escrow, kms_root_key,
    kms_root_key_version, kms_data_key, kms_data_key_name, kms_data_key_version, kms_tombstone, kms_epoch, kms_purpose, kms_reference,
    kms_instance, kms_lease, kms_usage
to kms_application;

-- New keys and versions. Nobody fills in what the database counts.
grant insert on kms_root_key, kms_root_key_version, kms_data_key, kms_data_key_version to kms_application;

-- Reconciling stores the installation's purposes.
grant insert (purpose, alg) on kms_purpose to kms_application;

-- Triggers write that something changed, and the tombstones of what was deleted. They have the rights of whoever sets
-- them off, also where that was the delete of a tenant that cascaded to its keys. (A tombstone of a version that is
-- there is refused, and a manifest names those of its key: one that somebody made up is found.)
grant insert (bucket, n) on kms_epoch to kms_application;
grant insert (key_id, version, private_id, kind, alg, commitment) on kms_tombstone to kms_application;

-- Processes say that they live, divide the work, and take what a version may seal. What was taken of a version is deleted
-- with it, by a trigger.
grant insert, update (name, seen, life, slot, signed), delete on kms_instance to kms_application;
grant insert, update (owner, fence, until) on kms_lease to kms_application;
grant insert, update (taken, used_at), delete on kms_usage to kms_application;

-- Tidying adds up what says that something changed. (Whoever puts something else there, or deletes it, can keep the other
-- processes from seeing a change until their keys are too old to be used.)
grant update (n), delete on kms_epoch to kms_application;

-- Rotation moves the head and the manifest over it, and changes the states of versions. What identifies a row, and its
-- scope, is not among the columns.
grant update (seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac) on kms_root_key, kms_data_key
to kms_application;
grant update (state) on kms_root_key_version, kms_data_key_version to kms_application;

-- A data key's manifest says by which generator its versions are made, and so does a name that is registered. What
-- identifies a name is not among the columns, and nobody deletes one.
grant update (generator) on kms_data_key to kms_application;
grant insert, update (seq, generator, last_version, removed, ik_kid, mac) on kms_data_key_name to kms_application;

-- Rewrapping replaces a wrapped key by the same key, wrapped under the newest parent; rekeying by the same key under a
-- new installation key.
grant update (key, ik_kid) on kms_root_key_version to kms_application;
grant update (key, root_key_version_id) on kms_data_key_version to kms_application;

-- Operator, who is a member of the application's role.

-- The installation is made once; its root slots are changed when the external root is, and its key when an old root
-- is not trusted any more.
grant insert on kms_installation, kms_root_slot to kms_operator;
grant insert (ik_kid, previous, link), delete on kms_installation_key to kms_operator;
grant update (ik_kid, seq, active_slot, mac) on kms_installation to kms_operator;
grant update (state, blob) on kms_root_slot to kms_operator;

-- What became of recovery files is kept for ever.
grant insert (ik_kid, event, detail) on kms_escrow to kms_operator;

-- Destroying versions, and saying what may have their ids. To count the rows that do, an operator also needs the right to
-- read the application's tables.
grant delete on kms_root_key_version, kms_data_key_version to kms_operator;
grant insert, delete on kms_reference to kms_operator;

-- Removing a raw key by its name, which a trigger allows only where the name says so. Its versions go as the owner of the
-- tables deletes them. An application that removes keys itself needs this right, too.
grant delete on kms_data_key to kms_operator;

-- Destroying and renaming scopes. Where the application's delete or update of its own tenant cascades to them,
-- PostgreSQL does it as the owner of the tables, and the application needs neither of these rights.
grant delete, update (scope_id) on kms_root_key to kms_operator;
