-- What there is once for an installation. Times are seconds since 1970. Sizes are in bytes.
--
-- Tables are not STRICT and unixepoch() is not used: both are newer than SQLite 3.35. So each column checks its own
-- type.

-- Written by the last migration of each schema version; what a program compares with its own number.
create table {prefix}_schema_version (
    only_row integer not null,
    version integer not null,

    constraint {prefix}_schema_version_pkey primary key (only_row),
    constraint {prefix}_schema_version_one check (only_row = 1),
    constraint {prefix}_schema_version_version check (typeof(version) = 'integer' and version >= 1)
);

-- What "or replace" deletes, no delete trigger sees. So each table whose rows are kept has a trigger, named no_replace,
-- that refuses a row which would take the place of another: by its primary key, by a unique one, or by the rowid. It
-- runs before SQLite looks for conflicts. Where an update can do the same, there is a second one.
create trigger {prefix}_schema_version_no_replace
before insert on {prefix}_schema_version
when exists (select 1 from {prefix}_schema_version where only_row = new.only_row)
begin
    select raise(abort, '{prefix}_schema_version_no_replace: a row that is there is never replaced');
end;

-- The installation keys that manifests and wrapped keys may name: one, or two while the installation is rekeyed. The
-- foreign keys that name them refuse to let one go that is still needed, and to write under one that is gone.
create table {prefix}_installation_key (
    ik_kid blob not null,
    -- The one that it follows, which may be gone, and the link by which whoever has that one knows it.
    previous blob,
    link blob,
    created integer not null default (cast(strftime('%s', 'now') as integer)),

    constraint {prefix}_installation_key_pkey primary key (ik_kid),
    -- No two follow the same one.
    constraint {prefix}_installation_key_previous_key unique (previous),
    constraint {prefix}_installation_key_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    constraint {prefix}_installation_key_previous check (
        previous is null or typeof(previous) = 'blob' and length(previous) = 16 and previous <> ik_kid),
    constraint {prefix}_installation_key_link check (
        (link is null) = (previous is null) and (link is null or typeof(link) = 'blob' and length(link) = 32)),
    constraint {prefix}_installation_key_created check (typeof(created) = 'integer' and created > 0)
);

create trigger {prefix}_installation_key_no_replace
before insert on {prefix}_installation_key
when exists (select 1 from {prefix}_installation_key where ik_kid = new.ik_kid)
    or exists (select 1 from {prefix}_installation_key where previous = new.previous)
    or exists (select 1 from {prefix}_installation_key where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_installation_key_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_installation_key_immutable
before update on {prefix}_installation_key
begin
    select raise(abort, '{prefix}_installation_key_immutable: what is said of an installation key never changes');
end;

-- The installation key sealed by one external root. A removed slot keeps its row, without the blob.
create table {prefix}_root_slot (
    private_id text not null,
    -- The order in which the slots were made, which the MAC over their list depends on.
    number integer not null,
    wrapper_type text not null,
    wrapper_key_id text not null,
    ik_kid blob not null,
    state integer not null,
    blob blob not null,
    created integer not null default (cast(strftime('%s', 'now') as integer)),
    -- When it last became the active one of its installation key, and since when it is that no more.
    activated integer,
    retired integer,
    removed integer,

    constraint {prefix}_root_slot_pkey primary key (private_id),
    constraint {prefix}_root_slot_number_key unique (number),
    constraint {prefix}_root_slot_number check (typeof(number) = 'integer' and number >= 1),
    -- Equal lengths in characters and in bytes: only ASCII, and no zero byte.
    constraint {prefix}_root_slot_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) between 1 and 64),
    constraint {prefix}_root_slot_wrapper_type check (typeof(wrapper_type) = 'text' and wrapper_type <> ''),
    constraint {prefix}_root_slot_wrapper_key_id check (typeof(wrapper_key_id) = 'text'),
    constraint {prefix}_root_slot_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    -- 2 active, 3 retired, 5 destroyed.
    constraint {prefix}_root_slot_state check (typeof(state) = 'integer' and state in (2, 3, 5)),
    constraint {prefix}_root_slot_blob check (typeof(blob) = 'blob' and (length(blob) = 0) = (state = 5)),
    constraint {prefix}_root_slot_created check (typeof(created) = 'integer' and created > 0),
    constraint {prefix}_root_slot_activated check (
        typeof(activated) in ('integer', 'null') and (activated is not null or state <> 2) and coalesce(activated, 1) > 0),
    constraint {prefix}_root_slot_retired check (
        typeof(retired) in ('integer', 'null') and (retired is null) = (state = 2) and coalesce(retired, 1) > 0),
    constraint {prefix}_root_slot_removed check (
        typeof(removed) in ('integer', 'null') and (removed is not null) = (state = 5) and coalesce(removed, 1) > 0)
);

-- While the installation is rekeyed, each of the two installation keys has an active slot of its own.
create unique index {prefix}_root_slot_one_active on {prefix}_root_slot (ik_kid) where state = 2;

create table {prefix}_installation (
    only_row integer not null,
    inst blob not null,
    ik_kid blob not null,
    seq integer not null,
    active_slot text not null,
    mac blob not null,
    created integer not null default (cast(strftime('%s', 'now') as integer)),

    constraint {prefix}_installation_pkey primary key (only_row),
    constraint {prefix}_installation_one check (only_row = 1),
    constraint {prefix}_installation_inst check (typeof(inst) = 'blob' and length(inst) = 16),
    constraint {prefix}_installation_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    constraint {prefix}_installation_seq check (typeof(seq) = 'integer' and seq >= 1),
    constraint {prefix}_installation_mac check (typeof(mac) = 'blob' and length(mac) = 32),
    constraint {prefix}_installation_created check (typeof(created) = 'integer' and created > 0),
    constraint {prefix}_installation_ik_kid_fkey foreign key (ik_kid)
        references {prefix}_installation_key (ik_kid),
    constraint {prefix}_installation_active_slot_fkey foreign key (active_slot)
        references {prefix}_root_slot (private_id) deferrable initially deferred
);

create trigger {prefix}_root_slot_no_replace
before insert on {prefix}_root_slot
when exists (select 1 from {prefix}_root_slot where private_id = new.private_id)
    or exists (select 1 from {prefix}_root_slot where number = new.number)
    or exists (select 1 from {prefix}_root_slot where rowid = new.rowid)
    or new.state = 2 and exists (select 1 from {prefix}_root_slot where ik_kid = new.ik_kid and state = 2)
begin
    select raise(abort, '{prefix}_root_slot_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_root_slot_no_replace_update
before update on {prefix}_root_slot
when old.rowid <> new.rowid
    or new.state = 2 and exists (
        select 1 from {prefix}_root_slot where ik_kid = new.ik_kid and state = 2 and private_id <> old.private_id)
begin
    select raise(abort, '{prefix}_root_slot_no_replace_update: a row never takes the place of another');
end;

create trigger {prefix}_root_slot_immutable
before update of private_id, number, wrapper_type, wrapper_key_id, ik_kid, created on {prefix}_root_slot
when old.private_id is not new.private_id or old.number is not new.number or old.wrapper_type is not new.wrapper_type
    or old.wrapper_key_id is not new.wrapper_key_id or old.ik_kid is not new.ik_kid or old.created is not new.created
begin
    select raise(abort, '{prefix}_root_slot_immutable: what identifies a root slot never changes');
end;

create trigger {prefix}_root_slot_removed_stays
before update on {prefix}_root_slot
when old.state = 5
begin
    select raise(abort, '{prefix}_root_slot_removed_stays: a removed root slot never changes');
end;

create trigger {prefix}_root_slot_kept
before delete on {prefix}_root_slot
begin
    select raise(abort, '{prefix}_root_slot_kept: a root slot is removed by its state, and its row stays');
end;

create trigger {prefix}_installation_no_replace
before insert on {prefix}_installation
when exists (select 1 from {prefix}_installation where only_row = new.only_row)
begin
    select raise(abort, '{prefix}_installation_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_installation_immutable
before update of only_row, inst, created on {prefix}_installation
when old.only_row is not new.only_row or old.inst is not new.inst or old.created is not new.created
begin
    select raise(abort, '{prefix}_installation_immutable: what identifies the installation never changes');
end;

create trigger {prefix}_installation_seq_grows
before update of ik_kid, seq, active_slot, mac on {prefix}_installation
when new.seq <= old.seq
begin
    select raise(abort, '{prefix}_installation_seq_grows: a new manifest needs a greater sequence number');
end;

create trigger {prefix}_installation_kept
before delete on {prefix}_installation
begin
    select raise(abort, '{prefix}_installation_kept: without its installation no key can be opened');
end;

-- What became of the installation key's copies outside the database. It has no foreign key: it outlives the key.
create table {prefix}_escrow (
    id integer not null,
    ik_kid blob not null,
    event text not null,
    detail text not null,
    at integer not null default (cast(strftime('%s', 'now') as integer)),

    constraint {prefix}_escrow_pkey primary key (id),
    constraint {prefix}_escrow_id check (id >= 1),
    constraint {prefix}_escrow_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    constraint {prefix}_escrow_event check (event in ('written', 'verified')),
    constraint {prefix}_escrow_detail check (
        typeof(detail) = 'text'
        and length(cast(detail as blob)) <= 4096
        and instr(cast(detail as blob), x'00') = 0),
    constraint {prefix}_escrow_at check (typeof(at) = 'integer' and at > 0)
);

create trigger {prefix}_escrow_no_replace
before insert on {prefix}_escrow
when exists (select 1 from {prefix}_escrow where id = new.id)
begin
    select raise(abort, '{prefix}_escrow_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_escrow_immutable
before update on {prefix}_escrow
begin
    select raise(abort, '{prefix}_escrow_immutable: what was done with an installation key never changes');
end;

create trigger {prefix}_escrow_kept
before delete on {prefix}_escrow
begin
    select raise(abort, '{prefix}_escrow_kept: what was done with an installation key is kept for ever');
end;

-- What is kept of a destroyed version. It has no foreign key: it outlives its key.
create table {prefix}_tombstone (
    key_id text not null,
    version integer not null,
    -- Empty for a number that an import found missing.
    private_id text not null,
    kind text not null,
    alg integer not null,
    commitment blob not null,
    destroyed integer not null default (cast(strftime('%s', 'now') as integer)),

    constraint {prefix}_tombstone_pkey primary key (key_id, version),
    constraint {prefix}_tombstone_key_id check (
        typeof(key_id) = 'text'
        and length(key_id) = length(cast(key_id as blob))
        and length(key_id) between 1 and 64),
    constraint {prefix}_tombstone_version check (typeof(version) = 'integer' and version between 1 and 65535),
    constraint {prefix}_tombstone_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) <= 64),
    constraint {prefix}_tombstone_kind check (kind in ('kek', 'dek')),
    constraint {prefix}_tombstone_alg check (typeof(alg) = 'integer' and alg between 0 and 3),
    constraint {prefix}_tombstone_commitment check (
        typeof(commitment) = 'blob' and length(commitment) = 32
        and (private_id <> '' or commitment = zeroblob(32))),
    constraint {prefix}_tombstone_destroyed check (typeof(destroyed) = 'integer' and destroyed > 0)
);

create unique index {prefix}_tombstone_private_id_key on {prefix}_tombstone (private_id) where private_id <> '';

create trigger {prefix}_tombstone_no_replace
before insert on {prefix}_tombstone
when exists (select 1 from {prefix}_tombstone where key_id = new.key_id and version = new.version)
    or exists (select 1 from {prefix}_tombstone where rowid = new.rowid)
    or new.private_id <> '' and exists (
        select 1 from {prefix}_tombstone where private_id = new.private_id and private_id <> '')
begin
    select raise(abort, '{prefix}_tombstone_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_tombstone_immutable
before update on {prefix}_tombstone
begin
    select raise(abort, '{prefix}_tombstone_immutable: a tombstone never changes');
end;

create trigger {prefix}_tombstone_kept
before delete on {prefix}_tombstone
begin
    select raise(abort, '{prefix}_tombstone_kept: a tombstone is kept for ever');
end;

-- What every scope has a data key for.
create table {prefix}_purpose (
    purpose text not null,
    -- 1 messages, 2 raw bytes, 3 blind indexes.
    alg integer not null,
    created integer not null default (cast(strftime('%s', 'now') as integer)),

    constraint {prefix}_purpose_pkey primary key (purpose),
    constraint {prefix}_purpose_purpose check (
        typeof(purpose) = 'text' and length(cast(purpose as blob)) between 1 and 255),
    constraint {prefix}_purpose_alg check (typeof(alg) = 'integer' and alg between 1 and 3),
    constraint {prefix}_purpose_created check (typeof(created) = 'integer' and created > 0)
);

create trigger {prefix}_purpose_no_replace
before insert on {prefix}_purpose
when exists (select 1 from {prefix}_purpose where purpose = new.purpose)
    or exists (select 1 from {prefix}_purpose where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_purpose_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_purpose_no_replace_update
before update on {prefix}_purpose
when exists (select 1 from {prefix}_purpose where purpose = new.purpose and rowid <> old.rowid)
    or exists (select 1 from {prefix}_purpose where rowid = new.rowid and rowid <> old.rowid)
begin
    select raise(abort, '{prefix}_purpose_no_replace_update: a row that is there is never replaced');
end;

-- Columns of the application's that have ids of data key versions in them, without a foreign key that says so.
create table {prefix}_reference (
    table_name text not null,
    column_name text not null,

    constraint {prefix}_reference_pkey primary key (table_name, column_name),
    constraint {prefix}_reference_names check (
        typeof(table_name) = 'text' and table_name <> '' and typeof(column_name) = 'text' and column_name <> '')
);

-- A change of a key adds a row to one of 32 buckets, so that no two writers wait for one row. A bucket's epoch is the
-- sum of its rows. They are random, so that a database which was set back and then changed again shows other sums than
-- before. The bucket is the first character of a key's id after krk_ or kdk_, as a digit; 0 if it is none.
create table {prefix}_epoch (
    id integer not null,
    bucket integer not null,
    n integer not null,

    constraint {prefix}_epoch_pkey primary key (id),
    constraint {prefix}_epoch_bucket check (typeof(bucket) = 'integer' and bucket between 0 and 31),
    constraint {prefix}_epoch_n check (typeof(n) = 'integer' and n >= 1)
);

create index {prefix}_epoch_bucket_idx on {prefix}_epoch (bucket, n);

-- The processes that seal with keys which they read earlier. Who destroys a version looks here first.
create table {prefix}_instance (
    private_id text not null,
    name text not null,
    -- The epochs before which it uses nothing any more: 32 numbers of eight bytes, big endian.
    seen blob not null,
    life integer not null,
    -- The root slot by which it opened the installation; empty if it says none.
    slot text not null,
    since integer not null default (cast(strftime('%s', 'now') as integer)),
    signed integer not null default (cast(strftime('%s', 'now') as integer)),

    constraint {prefix}_instance_pkey primary key (private_id),
    constraint {prefix}_instance_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) between 1 and 64),
    constraint {prefix}_instance_name check (
        typeof(name) = 'text'
        and length(cast(name as blob)) <= 255
        and instr(cast(name as blob), x'00') = 0),
    constraint {prefix}_instance_seen check (typeof(seen) = 'blob' and length(seen) = 256),
    constraint {prefix}_instance_life check (typeof(life) = 'integer' and life >= 0),
    constraint {prefix}_instance_slot check (
        typeof(slot) = 'text'
        and length(slot) = length(cast(slot as blob))
        and length(slot) <= 64),
    constraint {prefix}_instance_since check (typeof(since) = 'integer' and since > 0),
    constraint {prefix}_instance_signed check (typeof(signed) = 'integer' and signed > 0)
);

create trigger {prefix}_instance_no_replace
before insert on {prefix}_instance
when exists (select 1 from {prefix}_instance where private_id = new.private_id)
    or exists (select 1 from {prefix}_instance where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_instance_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_instance_immutable
before update on {prefix}_instance
when old.rowid <> new.rowid or old.private_id is not new.private_id or old.since is not new.since
begin
    select raise(abort, '{prefix}_instance_immutable: what identifies an instance never changes');
end;

-- Names that one owner has for some time. The row stays when the time is over, so that no fence comes twice.
create table {prefix}_lease (
    name text not null,
    owner text not null,
    fence integer not null,
    -- 0: released.
    until integer not null,

    constraint {prefix}_lease_pkey primary key (name),
    constraint {prefix}_lease_name check (
        typeof(name) = 'text'
        and length(name) = length(cast(name as blob))
        and length(name) between 1 and 64),
    constraint {prefix}_lease_owner check (
        typeof(owner) = 'text'
        and length(owner) = length(cast(owner as blob))
        and length(owner) between 1 and 64),
    constraint {prefix}_lease_fence check (typeof(fence) = 'integer' and fence >= 1),
    constraint {prefix}_lease_until check (typeof(until) = 'integer' and until >= 0)
);

create trigger {prefix}_lease_no_replace
before insert on {prefix}_lease
when exists (select 1 from {prefix}_lease where name = new.name)
    or exists (select 1 from {prefix}_lease where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_lease_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_lease_immutable
before update on {prefix}_lease
when old.rowid <> new.rowid or old.name is not new.name
begin
    select raise(abort, '{prefix}_lease_immutable: what identifies a lease never changes');
end;

create trigger {prefix}_lease_fence_grows
before update on {prefix}_lease
when new.fence < old.fence or new.owner <> old.owner and new.fence = old.fence
begin
    select raise(abort, '{prefix}_lease_fence_grows: a new owner needs a greater fence');
end;

create trigger {prefix}_lease_kept
before delete on {prefix}_lease
begin
    select raise(abort, '{prefix}_lease_kept: without its row a fence could come twice');
end;
