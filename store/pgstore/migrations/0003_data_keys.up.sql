-- The data key of a root key for a purpose.
create table {schema}{prefix}_data_key (
    private_id text collate "C" not null,
    root_key_id text collate "C" not null,
    purpose text collate "C" not null,
    seq bigint not null,
    head_version integer not null,
    head_state smallint not null default 2,
    rotate_every bigint not null,
    max_messages bigint not null,
    -- By which versions of raw bytes are made; empty for the default one.
    generator text collate "C" not null default '',
    rotate_at bigint,
    ik_kid bytea not null,
    mac bytea not null,
    created bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,

    constraint {prefix}_data_key_pkey primary key (private_id),
    constraint {prefix}_data_key_purpose_key unique (root_key_id, purpose),
    constraint {prefix}_data_key_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) between 5 and 64
        and starts_with(private_id, 'kdk_')),
    -- The characters trimmed are Unicode's White_Space.
    constraint {prefix}_data_key_purpose check (
        octet_length(purpose) between 1 and 255
        and purpose !~ '[\u0001-\u001f\u007f-\u009f]'
        and purpose = btrim(purpose, U&' \0009\000a\000b\000c\000d\0085\00a0\1680\2000\2001\2002\2003\2004'
            '\2005\2006\2007\2008\2009\200a\2028\2029\202f\205f\3000')),
    constraint {prefix}_data_key_seq check (seq >= 1),
    constraint {prefix}_data_key_head_version check (head_version between 1 and 65535),
    constraint {prefix}_data_key_head_state check (head_state = 2),
    constraint {prefix}_data_key_rotate_every check (rotate_every >= 0),
    constraint {prefix}_data_key_max_messages check (max_messages >= 0),
    constraint {prefix}_data_key_generator check (
        octet_length(generator) <= 255
        and generator !~ '[\u0001-\u001f\u007f-\u009f]'),
    constraint {prefix}_data_key_rotate_at check (rotate_at is null or rotate_at > 0 and rotate_every > 0),
    constraint {prefix}_data_key_ik_kid check (octet_length(ik_kid) = 16),
    constraint {prefix}_data_key_mac check (octet_length(mac) = 32),
    constraint {prefix}_data_key_created check (created > 0),
    constraint {prefix}_data_key_ik_kid_fkey foreign key (ik_kid)
        references {schema}{prefix}_installation_key (ik_kid),
    constraint {prefix}_data_key_root_key_fkey foreign key (root_key_id)
        references {schema}{prefix}_root_key (private_id) on delete cascade
);

create index {prefix}_data_key_rotate_at_idx on {schema}{prefix}_data_key (rotate_at, private_id) where rotate_at is not null;

create trigger {prefix}_data_key_immutable
before update of private_id, root_key_id, purpose, created on {schema}{prefix}_data_key
for each row
when (old.private_id is distinct from new.private_id or old.root_key_id is distinct from new.root_key_id
    or old.purpose is distinct from new.purpose or old.created is distinct from new.created)
execute function {schema}{prefix}_refuse('what identifies a data key never changes');

create trigger {prefix}_data_key_seq_grows
before update of seq, head_version, rotate_every, max_messages, generator, ik_kid, mac on {schema}{prefix}_data_key
for each row
when (new.seq <= old.seq)
execute function {schema}{prefix}_refuse('a new manifest needs a greater sequence number');

create trigger {prefix}_data_key_head_forward
before update of head_version on {schema}{prefix}_data_key
for each row
when (new.head_version < old.head_version)
execute function {schema}{prefix}_refuse('the head never goes back');

create function {schema}{prefix}_data_key_epoch_update() returns trigger language plpgsql {function_options}as $$
begin
    insert into {schema}{prefix}_epoch (bucket, n)
    select bucket, {schema}{prefix}_epoch_step() from (
        select {schema}{prefix}_bucket(private_id) as bucket from (
            select private_id, seq from changed except select private_id, seq from outdated) c
        group by 1) b;
    return null;
end
$$;

create trigger {prefix}_data_key_epoch_update
after update on {schema}{prefix}_data_key
referencing old table as outdated new table as changed
for each statement
execute function {schema}{prefix}_data_key_epoch_update();

create function {schema}{prefix}_data_key_epoch_delete() returns trigger language plpgsql {function_options}as $$
begin
    insert into {schema}{prefix}_epoch (bucket, n) values ({schema}{prefix}_bucket(old.private_id), {schema}{prefix}_epoch_step());
    return null;
end
$$;

create trigger {prefix}_data_key_epoch_delete
after delete on {schema}{prefix}_data_key
for each row
execute function {schema}{prefix}_data_key_epoch_delete();

create table {schema}{prefix}_data_key_version (
    private_id text collate "C" not null,
    data_key_id text collate "C" not null,
    root_key_version_id text collate "C" not null,
    version integer not null,
    state smallint not null,
    alg smallint not null,
    commitment bytea not null,
    -- Wrapped under the root key version.
    key bytea not null,
    created bigint not null,
    -- Since when it is; the trigger of state_change writes it.
    disabled bigint,

    constraint {prefix}_data_key_version_pkey primary key (private_id),
    constraint {prefix}_data_key_version_version_key unique (data_key_id, version),
    -- For the foreign key of the head.
    constraint {prefix}_data_key_version_state_key unique (data_key_id, version, state),
    constraint {prefix}_data_key_version_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) between 6 and 64
        and starts_with(private_id, 'kdkv_')),
    constraint {prefix}_data_key_version_version check (version between 1 and 65535),
    -- 1 pending, 2 active, 3 retired, 4 disabled. 5, destroyed, is a tombstone.
    constraint {prefix}_data_key_version_state check (state between 1 and 4),
    -- 1 messages, 2 raw, 3 blind index, and 0 for what an import brought.
    constraint {prefix}_data_key_version_alg check (alg between 0 and 3),
    constraint {prefix}_data_key_version_commitment check (octet_length(commitment) = 32),
    constraint {prefix}_data_key_version_key check (octet_length(key) > 0),
    constraint {prefix}_data_key_version_created check (created > 0),
    constraint {prefix}_data_key_version_disabled check ((disabled is not null) = (state = 4) and coalesce(disabled, 1) > 0),
    constraint {prefix}_data_key_version_key_fkey foreign key (data_key_id)
        references {schema}{prefix}_data_key (private_id) on delete cascade,
    -- Not restrict, and not at once: deleting the root key takes both sides, in an order that is not ours.
    constraint {prefix}_data_key_version_parent_fkey foreign key (root_key_version_id)
        references {schema}{prefix}_root_key_version (private_id) deferrable initially deferred
);

-- With head_state: at the end of each transaction the head is there, and active.
alter table {schema}{prefix}_data_key add constraint {prefix}_data_key_head_fkey
    foreign key (private_id, head_version, head_state)
    references {schema}{prefix}_data_key_version (data_key_id, version, state) deferrable initially deferred;

create index {prefix}_data_key_version_parent_idx on {schema}{prefix}_data_key_version (root_key_version_id);

create unique index {prefix}_data_key_version_one_active on {schema}{prefix}_data_key_version (data_key_id) where state = 2;

create index {prefix}_data_key_version_pending_idx on {schema}{prefix}_data_key_version (created, data_key_id) where state = 1;

-- They are counted and not only looked for: a transaction at a stricter level than read committed goes on seeing a
-- version that was destroyed after its snapshot, besides the new one of that number.
create function {schema}{prefix}_data_key_version_dense() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1
        from (select data_key_id, min(version) as lowest, max(version) as highest, count(*) as n from added group by data_key_id) a
        where a.n <> a.highest - a.lowest + 1
            or a.n <> (
                select count(*) from {schema}{prefix}_data_key_version v where v.data_key_id = a.data_key_id and v.version >= a.lowest)
            or a.lowest <> 1 + greatest(
                (select coalesce(max(v.version), 0) from {schema}{prefix}_data_key_version v
                where v.data_key_id = a.data_key_id and v.version < a.lowest),
                (select coalesce(max(t.version), 0) from {schema}{prefix}_tombstone t where t.key_id = a.data_key_id)))
    then
        raise exception '%: versions are numbered 1, 2, 3 and so on, none skipped or repeated', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_data_key_version_dense
after insert on {schema}{prefix}_data_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_data_key_version_dense();

create function {schema}{prefix}_data_key_version_not_again() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1 from added a
        where (select true from {schema}{prefix}_tombstone t where t.private_id = a.private_id and t.private_id <> ''))
    then
        raise exception '%: the version of this id was destroyed', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_data_key_version_not_again
after insert on {schema}{prefix}_data_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_data_key_version_not_again();

create function {schema}{prefix}_data_key_version_state_new() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1 from added a
        where a.state not in (1, 3) and not (a.state = 2 and coalesce(
            (select k.head_version = a.version from {schema}{prefix}_data_key k where k.private_id = a.data_key_id), false)))
    then
        raise exception '%: a new version is pending, or retired, or the active head', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

-- Retired ones are what an import brings.
create trigger {prefix}_data_key_version_state_new
after insert on {schema}{prefix}_data_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_data_key_version_state_new();

create function {schema}{prefix}_data_key_version_state_change() returns trigger language plpgsql {function_options}as $$
begin
    if not (
        old.state = 1 and new.state = 2 and exists (
            select 1 from {schema}{prefix}_data_key where private_id = new.data_key_id and head_version = new.version)
        or old.state = 2 and new.state = 3 and exists (
            select 1 from {schema}{prefix}_data_key where private_id = new.data_key_id and head_version <> new.version)
        or old.state = 3 and new.state = 4
        or old.state = 4 and new.state = 3)
    then
        raise exception '%: a version does not go from this state to that one', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    new.disabled := case when new.state = 4 then floor(extract(epoch from statement_timestamp()))::bigint end;
    return new;
end
$$;

create trigger {prefix}_data_key_version_state_change
before update of state on {schema}{prefix}_data_key_version
for each row
when (old.state <> new.state)
execute function {schema}{prefix}_data_key_version_state_change();

create trigger {prefix}_data_key_version_immutable
before update of private_id, data_key_id, version, alg, commitment, created on {schema}{prefix}_data_key_version
for each row
when (old.private_id is distinct from new.private_id or old.data_key_id is distinct from new.data_key_id
    or old.version is distinct from new.version or old.alg is distinct from new.alg
    or old.commitment is distinct from new.commitment or old.created is distinct from new.created)
execute function {schema}{prefix}_refuse('what identifies a version never changes');

-- When a key is deleted, its row is gone before this cascades to its versions, and any of them may go.
create function {schema}{prefix}_data_key_version_destroyable() returns trigger language plpgsql {function_options}as $$
begin
    if exists (select 1 from {schema}{prefix}_data_key where private_id = old.data_key_id) then
        raise exception '%: only a pending or disabled version can be destroyed', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return old;
end
$$;

create trigger {prefix}_data_key_version_destroyable
before delete on {schema}{prefix}_data_key_version
for each row
when (old.state not in (1, 4))
execute function {schema}{prefix}_data_key_version_destroyable();

-- How many messages of a version were given out, and since when that is four fifths of what may be. It has no foreign
-- key, as nothing but the application's ciphertexts may be in the way of destroying a version.
create table {schema}{prefix}_usage (
    private_id text collate "C" not null,
    taken bigint not null,
    used_at bigint,

    constraint {prefix}_usage_pkey primary key (private_id),
    constraint {prefix}_usage_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) between 6 and 64
        and starts_with(private_id, 'kdkv_')),
    constraint {prefix}_usage_taken check (taken >= 0),
    constraint {prefix}_usage_used_at check (used_at is null or used_at > 0)
);

create index {prefix}_usage_used_at_idx on {schema}{prefix}_usage (used_at, private_id) where used_at is not null;

create trigger {prefix}_usage_immutable
before update of private_id on {schema}{prefix}_usage
for each row
when (old.private_id is distinct from new.private_id)
execute function {schema}{prefix}_refuse('what identifies a usage never changes');

create trigger {prefix}_usage_grows
before update of taken on {schema}{prefix}_usage
for each row
when (new.taken < old.taken)
execute function {schema}{prefix}_refuse('what was given out is not taken back');

create function {schema}{prefix}_usage_kept() returns trigger language plpgsql {function_options}as $$
begin
    if exists (select 1 from {schema}{prefix}_data_key_version where private_id = old.private_id) then
        raise exception '%: what was given out of a version is known as long as the version is there', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return old;
end
$$;

create trigger {prefix}_usage_kept
before delete on {schema}{prefix}_usage
for each row
execute function {schema}{prefix}_usage_kept();

-- For a statement and not for each row: all rows are gone before the first trigger after them, and tombstones come by
-- number.
create function {schema}{prefix}_data_key_version_bury() returns trigger language plpgsql {function_options}as $$
begin
    insert into {schema}{prefix}_tombstone (key_id, version, private_id, kind, alg, commitment)
    select data_key_id, version, private_id, 'dek', alg, commitment from gone order by data_key_id, version;
    insert into {schema}{prefix}_epoch (bucket, n)
    select {schema}{prefix}_bucket(data_key_id), {schema}{prefix}_epoch_step() from gone group by data_key_id;
    delete from {schema}{prefix}_usage u using gone where u.private_id = gone.private_id;
    return null;
end
$$;

create trigger {prefix}_data_key_version_bury
after delete on {schema}{prefix}_data_key_version
referencing old table as gone
for each statement
execute function {schema}{prefix}_data_key_version_bury();

create function {schema}{prefix}_data_key_version_parent_insert() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1 from (select distinct data_key_id, root_key_version_id from added) n
        where coalesce(
            (select k.root_key_id from {schema}{prefix}_data_key k where k.private_id = n.data_key_id)
            <> (select p.root_key_id from {schema}{prefix}_root_key_version p
                where p.private_id = n.root_key_version_id and p.alg = 1), true))
    then
        raise exception '%: the parent is no version of the root key that wraps', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_data_key_version_parent_insert
after insert on {schema}{prefix}_data_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_data_key_version_parent_insert();

create function {schema}{prefix}_data_key_version_parent_update() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1 from (select distinct data_key_id, root_key_version_id from changed) n
        where coalesce(
            (select k.root_key_id from {schema}{prefix}_data_key k where k.private_id = n.data_key_id)
            <> (select p.root_key_id from {schema}{prefix}_root_key_version p
                where p.private_id = n.root_key_version_id and p.alg = 1), true))
    then
        raise exception '%: the parent is no version of the root key that wraps', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_data_key_version_parent_update
after update on {schema}{prefix}_data_key_version
referencing new table as changed
for each statement
execute function {schema}{prefix}_data_key_version_parent_update();

-- The parents' rows are locked, so that they are not disabled before this is committed: who disables one counts what it
-- wraps.
create function {schema}{prefix}_data_key_version_parent_usable_insert() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        with parents as materialized (
            select state from {schema}{prefix}_root_key_version
            where private_id = any (array(select distinct root_key_version_id from added))
            order by private_id for share)
        select 1 from parents where state = 4)
    then
        raise exception '%: the parent is disabled', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_data_key_version_parent_usable_insert
after insert on {schema}{prefix}_data_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_data_key_version_parent_usable_insert();

create function {schema}{prefix}_data_key_version_parent_usable_update() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        with parents as materialized (
            select state from {schema}{prefix}_root_key_version
            where private_id = any (array(select distinct root_key_version_id from (
                select private_id, root_key_version_id from changed except select private_id, root_key_version_id from outdated) n))
            order by private_id for share)
        select 1 from parents where state = 4)
    then
        raise exception '%: the parent is disabled', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_data_key_version_parent_usable_update
after update on {schema}{prefix}_data_key_version
referencing old table as outdated new table as changed
for each statement
execute function {schema}{prefix}_data_key_version_parent_usable_update();

-- Here and not with the table, because they look at both kinds of versions.
create function {schema}{prefix}_tombstone_not_live() returns trigger language plpgsql {function_options}as $$
begin
    if exists (select 1 from {schema}{prefix}_root_key_version where root_key_id = new.key_id and version = new.version)
        or exists (select 1 from {schema}{prefix}_data_key_version where data_key_id = new.key_id and version = new.version)
        or exists (select 1 from {schema}{prefix}_root_key_version where private_id = new.private_id)
        or exists (select 1 from {schema}{prefix}_data_key_version where private_id = new.private_id)
    then
        raise exception '%: the version is there', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return new;
end
$$;

create trigger {prefix}_tombstone_not_live
before insert on {schema}{prefix}_tombstone
for each row
execute function {schema}{prefix}_tombstone_not_live();

create function {schema}{prefix}_tombstone_dense() returns trigger language plpgsql {function_options}as $$
begin
    if new.version > 1 + greatest(
        (select coalesce(max(version), 0) from {schema}{prefix}_root_key_version where root_key_id = new.key_id),
        (select coalesce(max(version), 0) from {schema}{prefix}_data_key_version where data_key_id = new.key_id),
        (select coalesce(max(version), 0) from {schema}{prefix}_tombstone where key_id = new.key_id))
    then
        raise exception '%: versions are numbered 1, 2, 3 and so on, none skipped or repeated', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return new;
end
$$;

create trigger {prefix}_tombstone_dense
before insert on {schema}{prefix}_tombstone
for each row
execute function {schema}{prefix}_tombstone_dense();

create trigger {prefix}_data_key_no_truncate
before truncate on {schema}{prefix}_data_key
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_data_key_version_no_truncate
before truncate on {schema}{prefix}_data_key_version
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_usage_no_truncate
before truncate on {schema}{prefix}_usage
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

-- What is known of a name of raw bytes besides its data key, which may be there or not: by which generator versions are
-- made, and the last number of the keys that were removed. A name is never forgotten while its root key is there.
create table {schema}{prefix}_data_key_name (
    root_key_id text collate "C" not null,
    purpose text collate "C" not null,
    seq bigint not null,
    generator text collate "C" not null,
    last_version integer not null,
    -- 1: there is no key of the name, nor will be until it is registered again.
    removed smallint not null,
    ik_kid bytea not null,
    mac bytea not null,

    constraint {prefix}_data_key_name_pkey primary key (root_key_id, purpose),
    constraint {prefix}_data_key_name_purpose check (
        octet_length(purpose) between 1 and 255
        and purpose !~ '[\u0001-\u001f\u007f-\u009f]'
        and purpose = btrim(purpose, U&' \0009\000a\000b\000c\000d\0085\00a0\1680\2000\2001\2002\2003\2004'
            '\2005\2006\2007\2008\2009\200a\2028\2029\202f\205f\3000')),
    constraint {prefix}_data_key_name_seq check (seq >= 1),
    constraint {prefix}_data_key_name_generator check (
        octet_length(generator) <= 255
        and generator !~ '[\u0001-\u001f\u007f-\u009f]'),
    constraint {prefix}_data_key_name_last_version check (last_version between 0 and 65535),
    constraint {prefix}_data_key_name_removed check (removed between 0 and 1),
    constraint {prefix}_data_key_name_ik_kid check (octet_length(ik_kid) = 16),
    constraint {prefix}_data_key_name_mac check (octet_length(mac) = 32),
    constraint {prefix}_data_key_name_ik_kid_fkey foreign key (ik_kid)
        references {schema}{prefix}_installation_key (ik_kid),
    constraint {prefix}_data_key_name_root_key_fkey foreign key (root_key_id)
        references {schema}{prefix}_root_key (private_id) on delete cascade
);

create index {prefix}_data_key_name_ik_kid_idx on {schema}{prefix}_data_key_name (ik_kid, root_key_id, purpose);

create trigger {prefix}_data_key_name_immutable
before update of root_key_id, purpose on {schema}{prefix}_data_key_name
for each row
when (old.root_key_id is distinct from new.root_key_id or old.purpose is distinct from new.purpose)
execute function {schema}{prefix}_refuse('what identifies a name never changes');

create trigger {prefix}_data_key_name_seq_grows
before update of seq, generator, last_version, removed, ik_kid, mac on {schema}{prefix}_data_key_name
for each row
when (new.seq <= old.seq)
execute function {schema}{prefix}_refuse('a change of a name needs a greater sequence number');

create trigger {prefix}_data_key_name_last_grows
before update of last_version on {schema}{prefix}_data_key_name
for each row
when (new.last_version < old.last_version)
execute function {schema}{prefix}_refuse('the last number of the keys that were removed never goes back');

-- When the root key is deleted, its row is gone before this cascades to the names.
create function {schema}{prefix}_data_key_name_kept() returns trigger language plpgsql {function_options}as $$
begin
    if exists (select 1 from {schema}{prefix}_root_key where private_id = old.root_key_id) then
        raise exception '%: without its name the numbers of a key would come twice', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return old;
end
$$;

create trigger {prefix}_data_key_name_kept
before delete on {schema}{prefix}_data_key_name
for each row
execute function {schema}{prefix}_data_key_name_kept();

create trigger {prefix}_data_key_name_no_truncate
before truncate on {schema}{prefix}_data_key_name
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

-- Of two transactions, one that removes a name and one that inserts a key of it, neither sees what the other has not
-- committed. So who removes it locks the root key's row, which a foreign key locks for whoever inserts, until the end.
-- It writes that row, too, and changes nothing in it: a transaction that sees the database as it was before, at a
-- stricter level than read committed, can then insert no key. This is deferred, as a name is removed before its key
-- goes.
create function {schema}{prefix}_data_key_name_free() returns trigger language plpgsql {function_options}as $$
begin
    if tg_op = 'UPDATE' and old.removed = 1 then
        return null;
    end if;
    perform 1 from {schema}{prefix}_root_key where private_id = new.root_key_id for update;
    update {schema}{prefix}_root_key set rotate_at = rotate_at where private_id = new.root_key_id;
    if exists (select 1 from {schema}{prefix}_data_key where root_key_id = new.root_key_id and purpose = new.purpose) then
        raise exception '%: there is a key of the name that is to be removed', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create constraint trigger {prefix}_data_key_name_free
after insert or update on {schema}{prefix}_data_key_name
deferrable initially deferred
for each row
when (new.removed = 1)
execute function {schema}{prefix}_data_key_name_free();

-- After the insert, which may have waited for a key of the same name to go, and after the trigger of the foreign key,
-- whose name comes before any prefix and which may have waited for the root key: a name that is removed meanwhile is
-- seen.
create function {schema}{prefix}_data_key_named() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1 from added a
        where (select n.removed = 1 or n.last_version >= a.head_version from {schema}{prefix}_data_key_name n
            where n.root_key_id = a.root_key_id and n.purpose = a.purpose))
    then
        raise exception '%: the name was removed, and a new key of it begins after its last number', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_data_key_named
after insert on {schema}{prefix}_data_key
referencing new table as added
for each statement
execute function {schema}{prefix}_data_key_named();

-- When the root key is deleted, its row is gone before this cascades to the data keys.
create function {schema}{prefix}_data_key_leaves_name() returns trigger language plpgsql {function_options}as $$
begin
    if exists (select 1 from {schema}{prefix}_root_key where private_id = old.root_key_id)
        and not exists (
            select 1 from {schema}{prefix}_data_key_name n
            where n.root_key_id = old.root_key_id and n.purpose = old.purpose and n.removed = 1
                and n.last_version >= greatest(
                    (select coalesce(max(version), 0) from {schema}{prefix}_data_key_version where data_key_id = old.private_id),
                    (select coalesce(max(version), 0) from {schema}{prefix}_tombstone where key_id = old.private_id)))
    then
        raise exception '%: a data key goes with its root key, or leaves its name, removed, with its last number', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return old;
end
$$;

create trigger {prefix}_data_key_leaves_name
before delete on {schema}{prefix}_data_key
for each row
execute function {schema}{prefix}_data_key_leaves_name();
