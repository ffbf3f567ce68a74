-- What there is once for an installation. Times are seconds since 1970. Sizes are in bytes.
--
-- Text is compared byte by byte (collate "C"), whatever the database's own collation. Where a rule needs other rows than
-- the one that changes, its trigger has a function of its own, of the same name; the others share the first one.

create function {schema}{prefix}_refuse() returns trigger language plpgsql {function_options}as $$
begin
    raise exception '%: %', tg_name, tg_argv[0]
        using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
end
$$;

-- Written by the last migration of each schema version; what a program compares with its own number.
create table {schema}{prefix}_schema_version (
    only_row integer not null,
    version integer not null,

    constraint {prefix}_schema_version_pkey primary key (only_row),
    constraint {prefix}_schema_version_one check (only_row = 1),
    constraint {prefix}_schema_version_version check (version >= 1)
);

-- The installation keys that manifests and wrapped keys may name: none of them can go while one does. There are two
-- while the installation is rekeyed: the second names the first, which may be gone later, and has a link by which whoever
-- has the first knows the second.
create table {schema}{prefix}_installation_key (
    ik_kid bytea not null,
    previous bytea,
    link bytea,
    created bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,

    constraint {prefix}_installation_key_pkey primary key (ik_kid),
    -- No two follow the same one.
    constraint {prefix}_installation_key_previous_key unique (previous),
    constraint {prefix}_installation_key_ik_kid check (octet_length(ik_kid) = 16),
    constraint {prefix}_installation_key_previous check (octet_length(previous) = 16 and previous <> ik_kid),
    constraint {prefix}_installation_key_link check (
        (link is null) = (previous is null)
        and octet_length(link) = 32),
    constraint {prefix}_installation_key_created check (created > 0)
);

create trigger {prefix}_installation_key_immutable
before update on {schema}{prefix}_installation_key
for each row
execute function {schema}{prefix}_refuse('an installation key never changes');

-- The installation key sealed by one external root. A removed slot keeps its row, without the blob.
create table {schema}{prefix}_root_slot (
    private_id text collate "C" not null,
    -- The order in which the slots were made, which the MAC over their list depends on.
    number integer not null,
    wrapper_type text collate "C" not null,
    wrapper_key_id text collate "C" not null,
    ik_kid bytea not null,
    state smallint not null,
    blob bytea not null,
    created bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,
    -- When it last became the active one, and since when it is not; these and the next are written by the trigger of
    -- state_change.
    activated bigint,
    retired bigint,
    removed bigint,

    constraint {prefix}_root_slot_pkey primary key (private_id),
    constraint {prefix}_root_slot_number_key unique (number),
    constraint {prefix}_root_slot_number check (number >= 1),
    -- Equal lengths in characters and in bytes: only ASCII.
    constraint {prefix}_root_slot_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) between 1 and 64),
    constraint {prefix}_root_slot_wrapper_type check (wrapper_type <> ''),
    constraint {prefix}_root_slot_ik_kid check (octet_length(ik_kid) = 16),
    -- 2 active, 3 retired, 5 destroyed.
    constraint {prefix}_root_slot_state check (state in (2, 3, 5)),
    constraint {prefix}_root_slot_blob check ((octet_length(blob) = 0) = (state = 5)),
    constraint {prefix}_root_slot_created check (created > 0),
    constraint {prefix}_root_slot_activated check ((activated is not null or state <> 2) and coalesce(activated, 1) > 0),
    constraint {prefix}_root_slot_retired check ((retired is null) = (state = 2) and coalesce(retired, 1) > 0),
    constraint {prefix}_root_slot_removed check ((removed is not null) = (state = 5) and coalesce(removed, 1) > 0)
);

-- While the installation is rekeyed, each of the two installation keys has an active slot of its own.
create unique index {prefix}_root_slot_one_active on {schema}{prefix}_root_slot (ik_kid) where state = 2;

create table {schema}{prefix}_installation (
    only_row integer not null,
    inst bytea not null,
    ik_kid bytea not null,
    seq bigint not null,
    active_slot text collate "C" not null,
    mac bytea not null,
    created bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,

    constraint {prefix}_installation_pkey primary key (only_row),
    constraint {prefix}_installation_one check (only_row = 1),
    constraint {prefix}_installation_inst check (octet_length(inst) = 16),
    constraint {prefix}_installation_ik_kid check (octet_length(ik_kid) = 16),
    constraint {prefix}_installation_seq check (seq >= 1),
    constraint {prefix}_installation_mac check (octet_length(mac) = 32),
    constraint {prefix}_installation_created check (created > 0),
    constraint {prefix}_installation_ik_kid_fkey foreign key (ik_kid)
        references {schema}{prefix}_installation_key (ik_kid),
    constraint {prefix}_installation_active_slot_fkey foreign key (active_slot)
        references {schema}{prefix}_root_slot (private_id) deferrable initially deferred
);

create trigger {prefix}_root_slot_immutable
before update of private_id, number, wrapper_type, wrapper_key_id, ik_kid, created on {schema}{prefix}_root_slot
for each row
when (old.private_id is distinct from new.private_id or old.number is distinct from new.number
    or old.wrapper_type is distinct from new.wrapper_type or old.wrapper_key_id is distinct from new.wrapper_key_id
    or old.ik_kid is distinct from new.ik_kid or old.created is distinct from new.created)
execute function {schema}{prefix}_refuse('what identifies a root slot never changes');

create function {schema}{prefix}_root_slot_state_change() returns trigger language plpgsql {function_options}as $$
declare
    now bigint := floor(extract(epoch from statement_timestamp()))::bigint;
begin
    if not (old.state = 2 and new.state in (3, 5) or old.state = 3 and new.state in (2, 5)) then
        raise exception '%: a root slot does not go from this state to that one', tg_name
            using errcode = 'check_violation', constraint = tg_name, table = tg_table_name, schema = tg_table_schema;
    end if;
    new.activated := case when new.state = 2 then now else old.activated end;
    new.retired := case when new.state <> 2 then coalesce(old.retired, now) end;
    new.removed := case when new.state = 5 then now end;
    return new;
end
$$;

create trigger {prefix}_root_slot_state_change
before update of state on {schema}{prefix}_root_slot
for each row
when (old.state <> new.state)
execute function {schema}{prefix}_root_slot_state_change();

create trigger {prefix}_root_slot_removed_stays
before update on {schema}{prefix}_root_slot
for each row
when (old.state = 5)
execute function {schema}{prefix}_refuse('a removed root slot never changes');

create trigger {prefix}_root_slot_kept
before delete on {schema}{prefix}_root_slot
for each row
execute function {schema}{prefix}_refuse('a root slot is removed by its state, and its row stays');

create trigger {prefix}_installation_immutable
before update of only_row, inst, created on {schema}{prefix}_installation
for each row
when (old.only_row is distinct from new.only_row or old.inst is distinct from new.inst or old.created is distinct from new.created)
execute function {schema}{prefix}_refuse('what identifies the installation never changes');

create trigger {prefix}_installation_seq_grows
before update of ik_kid, seq, active_slot, mac on {schema}{prefix}_installation
for each row
when (new.seq <= old.seq)
execute function {schema}{prefix}_refuse('a new manifest needs a greater sequence number');

create trigger {prefix}_installation_kept
before delete on {schema}{prefix}_installation
for each row
execute function {schema}{prefix}_refuse('without its installation no key can be opened');

-- What is kept of a destroyed version. It has no foreign key: it outlives its key.
create table {schema}{prefix}_tombstone (
    key_id text collate "C" not null,
    version integer not null,
    -- Empty for a number that an import found missing.
    private_id text collate "C" not null,
    kind text collate "C" not null,
    alg smallint not null,
    commitment bytea not null,
    destroyed bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,

    constraint {prefix}_tombstone_pkey primary key (key_id, version),
    constraint {prefix}_tombstone_key_id check (
        length(key_id) = octet_length(key_id)
        and length(key_id) between 1 and 64),
    constraint {prefix}_tombstone_version check (version between 1 and 65535),
    constraint {prefix}_tombstone_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) <= 64),
    constraint {prefix}_tombstone_kind check (kind in ('kek', 'dek')),
    constraint {prefix}_tombstone_alg check (alg between 0 and 3),
    constraint {prefix}_tombstone_commitment check (
        octet_length(commitment) = 32
        and (private_id <> '' or commitment = decode(repeat('00', 32), 'hex'))),
    constraint {prefix}_tombstone_destroyed check (destroyed > 0)
);

create unique index {prefix}_tombstone_private_id_key on {schema}{prefix}_tombstone (private_id) where private_id <> '';

create trigger {prefix}_tombstone_immutable
before update on {schema}{prefix}_tombstone
for each row
execute function {schema}{prefix}_refuse('a tombstone never changes');

create trigger {prefix}_tombstone_kept
before delete on {schema}{prefix}_tombstone
for each row
execute function {schema}{prefix}_refuse('a tombstone is kept for ever');

-- What became of the copies of installation keys outside the database. It has no foreign key: it outlives the keys.
create table {schema}{prefix}_escrow (
    id bigint generated by default as identity,
    ik_kid bytea not null,
    event text collate "C" not null,
    detail text collate "C" not null,
    at bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,

    constraint {prefix}_escrow_pkey primary key (id),
    constraint {prefix}_escrow_ik_kid check (octet_length(ik_kid) = 16),
    constraint {prefix}_escrow_event check (event in ('written', 'verified')),
    constraint {prefix}_escrow_detail check (octet_length(detail) <= 4096),
    constraint {prefix}_escrow_at check (at > 0)
);

create trigger {prefix}_escrow_immutable
before update on {schema}{prefix}_escrow
for each row
execute function {schema}{prefix}_refuse('what became of a copy never changes');

create trigger {prefix}_escrow_kept
before delete on {schema}{prefix}_escrow
for each row
execute function {schema}{prefix}_refuse('what became of a copy is kept for ever');

-- What every scope has a data key for.
create table {schema}{prefix}_purpose (
    purpose text collate "C" not null,
    -- 1 messages, 2 raw bytes, 3 blind indexes.
    alg smallint not null,
    created bigint not null default floor(extract(epoch from statement_timestamp()))::bigint,

    constraint {prefix}_purpose_pkey primary key (purpose),
    constraint {prefix}_purpose_purpose check (octet_length(purpose) between 1 and 255),
    constraint {prefix}_purpose_alg check (alg between 1 and 3),
    constraint {prefix}_purpose_created check (created > 0)
);

-- Columns of the application's that have ids of data key versions in them, without a foreign key that says so.
create table {schema}{prefix}_reference (
    table_schema text collate "C" not null,
    table_name text collate "C" not null,
    column_name text collate "C" not null,

    constraint {prefix}_reference_pkey primary key (table_schema, table_name, column_name),
    constraint {prefix}_reference_names check (table_schema <> '' and table_name <> '' and column_name <> '')
);

-- A change of a key adds a row to one of 32 buckets, so that no two writers wait for one row. A bucket's epoch is the sum
-- of its rows. They are random, so that a database which was set back and then changed again shows other sums than before. The bucket is the first character of a key's id after krk_ or kdk_, as a digit; 0 if it is none.
create table {schema}{prefix}_epoch (
    id bigint generated by default as identity,
    bucket smallint not null,
    n bigint not null,

    constraint {prefix}_epoch_pkey primary key (id),
    constraint {prefix}_epoch_bucket check (bucket between 0 and 31),
    constraint {prefix}_epoch_n check (n >= 1)
);

create index {prefix}_epoch_bucket_idx on {schema}{prefix}_epoch (bucket, n);

create function {schema}{prefix}_epoch_step() returns bigint language sql volatile parallel restricted as $$
    select (1 + floor(random() * 1000000000))::bigint
$$;

create function {schema}{prefix}_bucket(key_id text) returns smallint language sql immutable parallel safe as $$
    select greatest(0, strpos('0123456789abcdefghijklmnopqrstuv', nullif(lower(substr(key_id, 5, 1)), '')) - 1)::smallint
$$;

-- The processes that use the keys. Each writes its own row every few seconds: half of a page stays free, so that the new
-- row has room beside the old one, and no index changes.
create table {schema}{prefix}_instance (
    private_id text collate "C" not null,
    name text collate "C" not null,
    -- 32 epochs of 8 bytes, big endian.
    seen bytea not null,
    life bigint not null,
    -- The root slot by which it opened the installation; empty if it does not say.
    slot text collate "C" not null default '',
    since bigint not null,
    signed bigint not null,

    constraint {prefix}_instance_pkey primary key (private_id),
    constraint {prefix}_instance_private_id check (
        length(private_id) = octet_length(private_id)
        and length(private_id) between 1 and 64),
    constraint {prefix}_instance_name check (octet_length(name) <= 255),
    constraint {prefix}_instance_seen check (octet_length(seen) = 256),
    constraint {prefix}_instance_life check (life >= 0),
    constraint {prefix}_instance_slot check (
        length(slot) = octet_length(slot)
        and length(slot) <= 64),
    constraint {prefix}_instance_since check (since > 0),
    constraint {prefix}_instance_signed check (signed > 0)
) with (fillfactor = 50);

create trigger {prefix}_instance_immutable
before update of private_id, since on {schema}{prefix}_instance
for each row
when (old.private_id is distinct from new.private_id or old.since is distinct from new.since)
execute function {schema}{prefix}_refuse('what identifies an instance never changes');

-- A row stays when its lease is over, with until in the past, so that no fence comes twice.
create table {schema}{prefix}_lease (
    name text collate "C" not null,
    owner text collate "C" not null,
    fence bigint not null,
    until bigint not null,

    constraint {prefix}_lease_pkey primary key (name),
    constraint {prefix}_lease_name check (
        length(name) = octet_length(name)
        and length(name) between 1 and 64),
    constraint {prefix}_lease_owner check (
        length(owner) = octet_length(owner)
        and length(owner) between 1 and 64),
    constraint {prefix}_lease_fence check (fence >= 1),
    constraint {prefix}_lease_until check (until >= 0)
);

create trigger {prefix}_lease_immutable
before update of name on {schema}{prefix}_lease
for each row
when (old.name is distinct from new.name)
execute function {schema}{prefix}_refuse('what identifies a lease never changes');

create trigger {prefix}_lease_fence_grows
before update on {schema}{prefix}_lease
for each row
when (new.fence < old.fence or new.fence = old.fence and new.owner <> old.owner)
execute function {schema}{prefix}_refuse('a new owner needs a greater fence');

create trigger {prefix}_lease_kept
before delete on {schema}{prefix}_lease
for each row
execute function {schema}{prefix}_refuse('without its row the fences of a lease would come twice');

-- What truncate empties, no other trigger sees, and it goes on to the tables that refer to it. So every table whose rows are
-- kept has a trigger, named no_truncate, that refuses it: also to a truncate of the application's that cascades to it.

create trigger {prefix}_schema_version_no_truncate
before truncate on {schema}{prefix}_schema_version
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_installation_key_no_truncate
before truncate on {schema}{prefix}_installation_key
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_root_slot_no_truncate
before truncate on {schema}{prefix}_root_slot
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_installation_no_truncate
before truncate on {schema}{prefix}_installation
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_tombstone_no_truncate
before truncate on {schema}{prefix}_tombstone
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_escrow_no_truncate
before truncate on {schema}{prefix}_escrow
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_purpose_no_truncate
before truncate on {schema}{prefix}_purpose
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_epoch_no_truncate
before truncate on {schema}{prefix}_epoch
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_instance_no_truncate
before truncate on {schema}{prefix}_instance
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');

create trigger {prefix}_lease_no_truncate
before truncate on {schema}{prefix}_lease
for each statement
execute function {schema}{prefix}_refuse('keys are not truncated: delete the scopes instead');
