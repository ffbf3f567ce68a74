-- The root key of a scope. The application may rename or delete the scope by a cascade.
create table {schema}{prefix}_root_key (
    private_id text collate "C" not null,
    scope_id {scope_type} not null,
    seq bigint not null,
    head_version integer not null,
    head_state smallint not null default 2,
    rotate_every bigint not null,
    max_messages bigint not null,
    rotate_at bigint,
    ik_kid bytea not null,
    mac bytea not null,
    created bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,

    constraint {prefix}_root_key_pkey primary key (private_id),
    constraint {prefix}_root_key_scope_id_key unique (scope_id),
    constraint {prefix}_root_key_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) between 5 and 64
        and starts_with(private_id, 'krk_')),
    constraint {prefix}_root_key_scope_id check ({scope_check}),
    constraint {prefix}_root_key_seq check (seq >= 1),
    constraint {prefix}_root_key_head_version check (head_version between 1 and 65535),
    constraint {prefix}_root_key_head_state check (head_state = 2),
    constraint {prefix}_root_key_rotate_every check (rotate_every >= 0),
    constraint {prefix}_root_key_max_messages check (max_messages >= 0),
    constraint {prefix}_root_key_rotate_at check (rotate_at is null or rotate_at > 0 and rotate_every > 0),
    constraint {prefix}_root_key_ik_kid check (octet_length(ik_kid) = 16),
    constraint {prefix}_root_key_mac check (octet_length(mac) = 32),
    constraint {prefix}_root_key_created check (created > 0),
    constraint {prefix}_root_key_ik_kid_fkey foreign key (ik_kid)
        references {schema}{prefix}_installation_key (ik_kid){scope_reference}
);

create index {prefix}_root_key_rotate_at_idx on {schema}{prefix}_root_key (rotate_at, private_id) where rotate_at is not null;

create trigger {prefix}_root_key_immutable
before update of private_id, created on {schema}{prefix}_root_key
for each row
when (old.private_id is distinct from new.private_id or old.created is distinct from new.created)
execute function {schema}{prefix}_refuse('what identifies a root key never changes');

create trigger {prefix}_root_key_seq_grows
before update of seq, head_version, rotate_every, max_messages, ik_kid, mac on {schema}{prefix}_root_key
for each row
when (new.seq <= old.seq)
execute function {schema}{prefix}_refuse('a new manifest needs a greater sequence number');

create trigger {prefix}_root_key_head_forward
before update of head_version on {schema}{prefix}_root_key
for each row
when (new.head_version < old.head_version)
execute function {schema}{prefix}_refuse('the head never goes back');

create function {schema}{prefix}_root_key_epoch_update() returns trigger language plpgsql {function_options}as $$
begin
    insert into {schema}{prefix}_epoch (bucket, n)
    select bucket, {schema}{prefix}_epoch_step() from (
        select {schema}{prefix}_bucket(private_id) as bucket from (
            select private_id, seq, scope_id from changed except select private_id, seq, scope_id from outdated) c
        group by 1) b;
    return null;
end
$$;

create trigger {prefix}_root_key_epoch_update
after update on {schema}{prefix}_root_key
referencing old table as outdated new table as changed
for each statement
execute function {schema}{prefix}_root_key_epoch_update();

create function {schema}{prefix}_root_key_epoch_delete() returns trigger language plpgsql {function_options}as $$
begin
    insert into {schema}{prefix}_epoch (bucket, n) values ({schema}{prefix}_bucket(old.private_id), {schema}{prefix}_epoch_step());
    return null;
end
$$;

create trigger {prefix}_root_key_epoch_delete
after delete on {schema}{prefix}_root_key
for each row
execute function {schema}{prefix}_root_key_epoch_delete();

create table {schema}{prefix}_root_key_version (
    private_id text collate "C" not null,
    root_key_id text collate "C" not null,
    version integer not null,
    state smallint not null,
    alg smallint not null,
    commitment bytea not null,
    -- Wrapped under the installation key that ik_kid names.
    key bytea not null,
    ik_kid bytea not null,
    created bigint not null,
    -- Since when it is; the trigger of state_change writes it.
    disabled bigint,

    constraint {prefix}_root_key_version_pkey primary key (private_id),
    constraint {prefix}_root_key_version_version_key unique (root_key_id, version),
    -- For the foreign key of the head.
    constraint {prefix}_root_key_version_state_key unique (root_key_id, version, state),
    constraint {prefix}_root_key_version_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) between 6 and 64
        and starts_with(private_id, 'krkv_')),
    constraint {prefix}_root_key_version_version check (version between 1 and 65535),
    -- 1 pending, 2 active, 3 retired, 4 disabled. 5, destroyed, is a tombstone.
    constraint {prefix}_root_key_version_state check (state between 1 and 4),
    -- 1, and 0 for what an import brought.
    constraint {prefix}_root_key_version_alg check (alg between 0 and 1),
    constraint {prefix}_root_key_version_commitment check (octet_length(commitment) = 32),
    constraint {prefix}_root_key_version_key check (octet_length(key) > 0),
    constraint {prefix}_root_key_version_created check (created > 0),
    constraint {prefix}_root_key_version_disabled check ((disabled is not null) = (state = 4) and coalesce(disabled, 1) > 0),
    constraint {prefix}_root_key_version_ik_kid check (octet_length(ik_kid) = 16),
    constraint {prefix}_root_key_version_ik_kid_fkey foreign key (ik_kid)
        references {schema}{prefix}_installation_key (ik_kid),
    constraint {prefix}_root_key_version_key_fkey foreign key (root_key_id)
        references {schema}{prefix}_root_key (private_id) on delete cascade
);

-- With head_state: at the end of each transaction the head is there, and active.
alter table {schema}{prefix}_root_key add constraint {prefix}_root_key_head_fkey
    foreign key (private_id, head_version, head_state)
    references {schema}{prefix}_root_key_version (root_key_id, version, state) deferrable initially deferred;

create unique index {prefix}_root_key_version_one_active on {schema}{prefix}_root_key_version (root_key_id) where state = 2;

create index {prefix}_root_key_version_pending_idx on {schema}{prefix}_root_key_version (created, root_key_id) where state = 1;

-- They are counted and not only looked for: a transaction at a stricter level than read committed goes on seeing a
-- version that was destroyed after its snapshot, besides the new one of that number.
create function {schema}{prefix}_root_key_version_dense() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1
        from (select root_key_id, min(version) as lowest, max(version) as highest, count(*) as n from added group by root_key_id) a
        where a.n <> a.highest - a.lowest + 1
            or a.n <> (
                select count(*) from {schema}{prefix}_root_key_version v where v.root_key_id = a.root_key_id and v.version >= a.lowest)
            or a.lowest <> 1 + greatest(
                (select coalesce(max(v.version), 0) from {schema}{prefix}_root_key_version v
                where v.root_key_id = a.root_key_id and v.version < a.lowest),
                (select coalesce(max(t.version), 0) from {schema}{prefix}_tombstone t where t.key_id = a.root_key_id)))
    then
        raise exception '%: versions are numbered 1, 2, 3 and so on, none skipped or repeated', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

create trigger {prefix}_root_key_version_dense
after insert on {schema}{prefix}_root_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_root_key_version_dense();

create function {schema}{prefix}_root_key_version_not_again() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
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

create trigger {prefix}_root_key_version_not_again
after insert on {schema}{prefix}_root_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_root_key_version_not_again();

create function {schema}{prefix}_root_key_version_state_new() returns trigger language plpgsql {function_options}set enable_seqscan to 'off' as $$
begin
    if exists (
        select 1 from added a
        where a.state not in (1, 3) and not (a.state = 2 and coalesce(
            (select k.head_version = a.version from {schema}{prefix}_root_key k where k.private_id = a.root_key_id), false)))
    then
        raise exception '%: a new version is pending, or retired, or the active head', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return null;
end
$$;

-- Retired ones are what an import brings.
create trigger {prefix}_root_key_version_state_new
after insert on {schema}{prefix}_root_key_version
referencing new table as added
for each statement
execute function {schema}{prefix}_root_key_version_state_new();

create function {schema}{prefix}_root_key_version_state_change() returns trigger language plpgsql {function_options}as $$
begin
    if not (
        old.state = 1 and new.state = 2 and exists (
            select 1 from {schema}{prefix}_root_key where private_id = new.root_key_id and head_version = new.version)
        or old.state = 2 and new.state = 3 and exists (
            select 1 from {schema}{prefix}_root_key where private_id = new.root_key_id and head_version <> new.version)
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

create trigger {prefix}_root_key_version_state_change
before update of state on {schema}{prefix}_root_key_version
for each row
when (old.state <> new.state)
execute function {schema}{prefix}_root_key_version_state_change();

create trigger {prefix}_root_key_version_immutable
before update of private_id, root_key_id, version, alg, commitment, created on {schema}{prefix}_root_key_version
for each row
when (old.private_id is distinct from new.private_id or old.root_key_id is distinct from new.root_key_id
    or old.version is distinct from new.version or old.alg is distinct from new.alg
    or old.commitment is distinct from new.commitment or old.created is distinct from new.created)
execute function {schema}{prefix}_refuse('what identifies a version never changes');

-- When a key is deleted, its row is gone before this cascades to its versions, and any of them may go.
create function {schema}{prefix}_root_key_version_destroyable() returns trigger language plpgsql {function_options}as $$
begin
    if exists (select 1 from {schema}{prefix}_root_key where private_id = old.root_key_id) then
        raise exception '%: only a pending or disabled version can be destroyed', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    return old;
end
$$;

create trigger {prefix}_root_key_version_destroyable
before delete on {schema}{prefix}_root_key_version
for each row
when (old.state not in (1, 4))
execute function {schema}{prefix}_root_key_version_destroyable();

-- For a statement and not for each row: all rows are gone before the first trigger after them, and tombstones come by
-- number.
create function {schema}{prefix}_root_key_version_bury() returns trigger language plpgsql {function_options}as $$
begin
    insert into {schema}{prefix}_tombstone (key_id, version, private_id, kind, alg, commitment)
    select root_key_id, version, private_id, 'kek', alg, commitment from gone order by root_key_id, version;
    insert into {schema}{prefix}_epoch (bucket, n)
    select {schema}{prefix}_bucket(root_key_id), {schema}{prefix}_epoch_step() from gone group by root_key_id;
    return null;
end
$$;

create trigger {prefix}_root_key_version_bury
after delete on {schema}{prefix}_root_key_version
referencing old table as gone
for each statement
execute function {schema}{prefix}_root_key_version_bury();

create trigger {prefix}_root_key_no_truncate
before truncate on {schema}{prefix}_root_key
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_root_key_version_no_truncate
before truncate on {schema}{prefix}_root_key_version
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');
