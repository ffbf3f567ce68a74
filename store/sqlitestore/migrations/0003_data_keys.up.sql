-- The data key of a root key for a purpose.
create table {prefix}_data_key (
    private_id text not null,
    root_key_id text not null,
    purpose text not null,
    seq integer not null,
    head_version integer not null,
    head_state integer not null default 2,
    rotate_every integer not null,
    max_messages integer not null,
    -- By what its versions are made; empty for the default.
    generator text not null default '',
    rotate_at integer,
    ik_kid blob not null,
    mac blob not null,
    created integer not null default (cast(strftime('%s', 'now') as integer)),
    -- 0 from when its name says that it is removed until it is deleted, else null.
    leaving integer,

    constraint {prefix}_data_key_pkey primary key (private_id),
    constraint {prefix}_data_key_purpose_key unique (root_key_id, purpose),
    constraint {prefix}_data_key_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) <= 64
        and private_id glob 'kdk_?*'),
    -- The characters trimmed are Unicode's White_Space.
    constraint {prefix}_data_key_purpose check (
        typeof(purpose) = 'text'
        and length(cast(purpose as blob)) between 1 and 255
        and instr(cast(purpose as blob), x'00') = 0
        and purpose not glob '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'
        and purpose = trim(purpose, char(9, 10, 11, 12, 13, 32, 133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198,
            8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288))),
    constraint {prefix}_data_key_seq check (typeof(seq) = 'integer' and seq >= 1),
    constraint {prefix}_data_key_head_version check (typeof(head_version) = 'integer' and head_version between 1 and 65535),
    constraint {prefix}_data_key_head_state check (head_state = 2),
    constraint {prefix}_data_key_rotate_every check (typeof(rotate_every) = 'integer' and rotate_every >= 0),
    constraint {prefix}_data_key_max_messages check (typeof(max_messages) = 'integer' and max_messages >= 0),
    constraint {prefix}_data_key_generator check (
        typeof(generator) = 'text'
        and length(cast(generator as blob)) <= 255
        and instr(cast(generator as blob), x'00') = 0
        and generator not glob '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'),
    constraint {prefix}_data_key_rotate_at check (
        rotate_at is null or typeof(rotate_at) = 'integer' and rotate_at > 0 and rotate_every > 0),
    constraint {prefix}_data_key_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    constraint {prefix}_data_key_mac check (typeof(mac) = 'blob' and length(mac) = 32),
    constraint {prefix}_data_key_created check (typeof(created) = 'integer' and created > 0),
    constraint {prefix}_data_key_leaving check (leaving is null or leaving = 0),
    constraint {prefix}_data_key_ik_kid_fkey foreign key (ik_kid)
        references {prefix}_installation_key (ik_kid),
    -- With head_state: at the end of each transaction the head is there, and active.
    constraint {prefix}_data_key_head_fkey foreign key (private_id, head_version, head_state)
        references {prefix}_data_key_version (data_key_id, version, state) deferrable initially deferred,
    -- To a row that is never there: at the end of each transaction no key is leaving any more.
    constraint {prefix}_data_key_leaving_fkey foreign key (leaving)
        references {prefix}_installation (only_row) deferrable initially deferred,
    constraint {prefix}_data_key_root_key_fkey foreign key (root_key_id)
        references {prefix}_root_key (private_id) on delete cascade
);

create index {prefix}_data_key_rotate_at_idx on {prefix}_data_key (rotate_at, private_id) where rotate_at is not null;

create trigger {prefix}_data_key_no_replace
before insert on {prefix}_data_key
when exists (select 1 from {prefix}_data_key where private_id = new.private_id)
    or exists (select 1 from {prefix}_data_key where root_key_id = new.root_key_id and purpose = new.purpose)
    or exists (select 1 from {prefix}_data_key where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_data_key_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_data_key_no_replace_update
before update on {prefix}_data_key
when old.rowid <> new.rowid
begin
    select raise(abort, '{prefix}_data_key_no_replace_update: a row never takes the place of another');
end;

create trigger {prefix}_data_key_immutable
before update of private_id, root_key_id, purpose, created on {prefix}_data_key
when old.private_id is not new.private_id or old.root_key_id is not new.root_key_id or old.purpose is not new.purpose or old.created is not new.created
begin
    select raise(abort, '{prefix}_data_key_immutable: what identifies a data key never changes');
end;

create trigger {prefix}_data_key_seq_grows
before update of seq, head_version, rotate_every, max_messages, generator, ik_kid, mac on {prefix}_data_key
when new.seq <= old.seq
begin
    select raise(abort, '{prefix}_data_key_seq_grows: a new manifest needs a greater sequence number');
end;

create trigger {prefix}_data_key_head_forward
before update of head_version on {prefix}_data_key
when new.head_version < old.head_version
begin
    select raise(abort, '{prefix}_data_key_head_forward: the head never goes back');
end;

create trigger {prefix}_data_key_epoch_update
after update of seq on {prefix}_data_key
begin
    insert into {prefix}_epoch (bucket, n)
    values (max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr(new.private_id, 5, 1))) - 1), abs(random() % 1000000000) + 1);
end;

create trigger {prefix}_data_key_epoch_delete
after delete on {prefix}_data_key
begin
    insert into {prefix}_epoch (bucket, n)
    values (max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr(old.private_id, 5, 1))) - 1), abs(random() % 1000000000) + 1);
end;

create table {prefix}_data_key_version (
    private_id text not null,
    data_key_id text not null,
    root_key_version_id text not null,
    version integer not null,
    state integer not null,
    alg integer not null,
    commitment blob not null,
    -- Wrapped under the root key version.
    key blob not null,
    created integer not null,
    -- When it was disabled.
    disabled integer,

    constraint {prefix}_data_key_version_pkey primary key (private_id),
    constraint {prefix}_data_key_version_version_key unique (data_key_id, version),
    -- For the foreign key of the head.
    constraint {prefix}_data_key_version_state_key unique (data_key_id, version, state),
    constraint {prefix}_data_key_version_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) <= 64
        and private_id glob 'kdkv_?*'),
    constraint {prefix}_data_key_version_version check (typeof(version) = 'integer' and version between 1 and 65535),
    -- 1 pending, 2 active, 3 retired, 4 disabled. 5, destroyed, is a tombstone.
    constraint {prefix}_data_key_version_state check (typeof(state) = 'integer' and state between 1 and 4),
    -- 1 messages, 2 raw, 3 blind index, and 0 for what an import brought.
    constraint {prefix}_data_key_version_alg check (typeof(alg) = 'integer' and alg between 0 and 3),
    constraint {prefix}_data_key_version_commitment check (typeof(commitment) = 'blob' and length(commitment) = 32),
    constraint {prefix}_data_key_version_key check (typeof(key) = 'blob' and length(key) > 0),
    constraint {prefix}_data_key_version_created check (typeof(created) = 'integer' and created > 0),
    constraint {prefix}_data_key_version_disabled check (
        typeof(disabled) in ('integer', 'null') and (disabled is not null) = (state = 4) and coalesce(disabled, 1) > 0),
    constraint {prefix}_data_key_version_key_fkey foreign key (data_key_id)
        references {prefix}_data_key (private_id) on delete cascade,
    -- Not restrict, and not at once: deleting the root key takes both sides, in an order that is not ours.
    constraint {prefix}_data_key_version_parent_fkey foreign key (root_key_version_id)
        references {prefix}_root_key_version (private_id) deferrable initially deferred
);

create index {prefix}_data_key_version_parent_idx on {prefix}_data_key_version (root_key_version_id);

create unique index {prefix}_data_key_version_one_active on {prefix}_data_key_version (data_key_id) where state = 2;

create index {prefix}_data_key_version_pending_idx on {prefix}_data_key_version (created, data_key_id) where state = 1;

create trigger {prefix}_data_key_version_no_replace
before insert on {prefix}_data_key_version
when exists (select 1 from {prefix}_data_key_version where private_id = new.private_id)
    or exists (select 1 from {prefix}_data_key_version where data_key_id = new.data_key_id and version = new.version)
    or exists (select 1 from {prefix}_data_key_version where rowid = new.rowid)
    or new.state = 2 and exists (select 1 from {prefix}_data_key_version where data_key_id = new.data_key_id and state = 2)
begin
    select raise(abort, '{prefix}_data_key_version_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_data_key_version_no_replace_update
before update on {prefix}_data_key_version
when old.rowid <> new.rowid
    or new.state = 2 and exists (
        select 1 from {prefix}_data_key_version where data_key_id = new.data_key_id and state = 2 and private_id <> old.private_id)
begin
    select raise(abort, '{prefix}_data_key_version_no_replace_update: a row never takes the place of another');
end;

create trigger {prefix}_data_key_version_dense
before insert on {prefix}_data_key_version
when new.version <> 1 + max(
    (select coalesce(max(version), 0) from {prefix}_data_key_version where data_key_id = new.data_key_id),
    (select coalesce(max(version), 0) from {prefix}_tombstone where key_id = new.data_key_id))
begin
    select raise(abort, '{prefix}_data_key_version_dense: versions are numbered 1, 2, 3 and so on, none skipped or repeated');
end;

create trigger {prefix}_data_key_version_not_again
before insert on {prefix}_data_key_version
when exists (select 1 from {prefix}_tombstone where private_id = new.private_id and private_id <> '')
begin
    select raise(abort, '{prefix}_data_key_version_not_again: the version of this id was destroyed');
end;

-- Retired ones are what an import brings.
create trigger {prefix}_data_key_version_state_new
before insert on {prefix}_data_key_version
when not (new.state in (1, 3)
    or new.state = 2 and exists (
        select 1 from {prefix}_data_key where private_id = new.data_key_id and head_version = new.version))
begin
    select raise(abort, '{prefix}_data_key_version_state_new: a new version is pending, or retired, or the active head');
end;

create trigger {prefix}_data_key_version_state_change
before update of state on {prefix}_data_key_version
when old.state <> new.state and not (
    old.state = 1 and new.state = 2 and exists (
        select 1 from {prefix}_data_key where private_id = new.data_key_id and head_version = new.version)
    or old.state = 2 and new.state = 3 and exists (
        select 1 from {prefix}_data_key where private_id = new.data_key_id and head_version <> new.version)
    or old.state = 3 and new.state = 4
    or old.state = 4 and new.state = 3)
begin
    select raise(abort, '{prefix}_data_key_version_state_change: a version does not go from this state to that one');
end;

create trigger {prefix}_data_key_version_immutable
before update of private_id, data_key_id, version, alg, commitment, created on {prefix}_data_key_version
when old.private_id is not new.private_id or old.data_key_id is not new.data_key_id
    or old.version is not new.version or old.alg is not new.alg
    or old.commitment is not new.commitment or old.created is not new.created
begin
    select raise(abort, '{prefix}_data_key_version_immutable: what identifies a version never changes');
end;

-- When a key is deleted, its row is gone before this cascades to its versions, and any of them may go.
create trigger {prefix}_data_key_version_destroyable
before delete on {prefix}_data_key_version
when old.state not in (1, 4) and exists (select 1 from {prefix}_data_key where private_id = old.data_key_id)
begin
    select raise(abort, '{prefix}_data_key_version_destroyable: only a pending or disabled version can be destroyed');
end;

create trigger {prefix}_data_key_version_bury
after delete on {prefix}_data_key_version
begin
    insert into {prefix}_tombstone (key_id, version, private_id, kind, alg, commitment)
    values (old.data_key_id, old.version, old.private_id, 'dek', old.alg, old.commitment);
    delete from {prefix}_usage where private_id = old.private_id;
    insert into {prefix}_epoch (bucket, n)
    values (max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr(old.data_key_id, 5, 1))) - 1), abs(random() % 1000000000) + 1);
end;

create trigger {prefix}_data_key_version_parent_insert
before insert on {prefix}_data_key_version
when not exists (
    select 1
    from {prefix}_data_key k
    join {prefix}_root_key_version p on p.root_key_id = k.root_key_id
    where k.private_id = new.data_key_id and p.private_id = new.root_key_version_id and p.alg = 1)
begin
    select raise(abort, '{prefix}_data_key_version_parent_insert: the parent is no version of the root key that wraps');
end;

create trigger {prefix}_data_key_version_parent_update
before update of root_key_version_id on {prefix}_data_key_version
when not exists (
    select 1
    from {prefix}_data_key k
    join {prefix}_root_key_version p on p.root_key_id = k.root_key_id
    where k.private_id = new.data_key_id and p.private_id = new.root_key_version_id and p.alg = 1)
begin
    select raise(abort, '{prefix}_data_key_version_parent_update: the parent is no version of the root key that wraps');
end;

-- How many of the messages that it may seal were taken of a data key version. It has no foreign key: those that
-- reference versions are the application's. A version without a row had none taken.
create table {prefix}_usage (
    private_id text not null,
    taken integer not null,
    -- Since when four fifths are taken; null again when the version is not the head any more.
    used_at integer,

    constraint {prefix}_usage_pkey primary key (private_id),
    constraint {prefix}_usage_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) <= 64
        and private_id glob 'kdkv_?*'),
    constraint {prefix}_usage_taken check (typeof(taken) = 'integer' and taken >= 0),
    constraint {prefix}_usage_used_at check (typeof(used_at) in ('integer', 'null') and coalesce(used_at, 1) > 0)
);

create index {prefix}_usage_used_at_idx on {prefix}_usage (used_at, private_id) where used_at is not null;

create trigger {prefix}_usage_no_replace
before insert on {prefix}_usage
when exists (select 1 from {prefix}_usage where private_id = new.private_id)
    or exists (select 1 from {prefix}_usage where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_usage_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_usage_immutable
before update on {prefix}_usage
when old.rowid <> new.rowid or old.private_id is not new.private_id
begin
    select raise(abort, '{prefix}_usage_immutable: what identifies a usage never changes');
end;

create trigger {prefix}_usage_of_version
before insert on {prefix}_usage
when not exists (select 1 from {prefix}_data_key_version where private_id = new.private_id)
begin
    select raise(abort, '{prefix}_usage_of_version: there is no such version');
end;

create trigger {prefix}_usage_grows
before update of taken on {prefix}_usage
when new.taken < old.taken
begin
    select raise(abort, '{prefix}_usage_grows: what was taken is never given back');
end;

create trigger {prefix}_usage_kept
before delete on {prefix}_usage
when exists (select 1 from {prefix}_data_key_version where private_id = old.private_id)
begin
    select raise(abort, '{prefix}_usage_kept: without its row a version could seal as much again');
end;

-- The list of what is used up is one of heads: it should not have to look at all that ever were.
create trigger {prefix}_data_key_version_retire
after update of state on {prefix}_data_key_version
when old.state = 2 and new.state = 3
begin
    update {prefix}_usage set used_at = null where private_id = new.private_id;
end;

-- Who disables a parent counts what it wraps.
create trigger {prefix}_data_key_version_parent_usable_insert
before insert on {prefix}_data_key_version
when exists (select 1 from {prefix}_root_key_version where private_id = new.root_key_version_id and state = 4)
begin
    select raise(abort, '{prefix}_data_key_version_parent_usable_insert: the parent is disabled');
end;

create trigger {prefix}_data_key_version_parent_usable_update
before update of root_key_version_id on {prefix}_data_key_version
when old.root_key_version_id is not new.root_key_version_id
    and exists (select 1 from {prefix}_root_key_version where private_id = new.root_key_version_id and state = 4)
begin
    select raise(abort, '{prefix}_data_key_version_parent_usable_update: the parent is disabled');
end;

-- What is known of the name of a data key besides the key, which may be there or not. It outlives the key, and only
-- with the root key it goes.
create table {prefix}_data_key_name (
    root_key_id text not null,
    purpose text not null,
    seq integer not null,
    generator text not null,
    -- The highest number of any key of this name that was removed; 0 if none was.
    last_version integer not null,
    -- 1 if there is no such key, and is not to be one.
    removed integer not null,
    ik_kid blob not null,
    mac blob not null,

    constraint {prefix}_data_key_name_pkey primary key (root_key_id, purpose),
    -- The characters trimmed are Unicode's White_Space.
    constraint {prefix}_data_key_name_purpose check (
        typeof(purpose) = 'text'
        and length(cast(purpose as blob)) between 1 and 255
        and instr(cast(purpose as blob), x'00') = 0
        and purpose not glob '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'
        and purpose = trim(purpose, char(9, 10, 11, 12, 13, 32, 133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198,
            8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288))),
    constraint {prefix}_data_key_name_seq check (typeof(seq) = 'integer' and seq >= 1),
    constraint {prefix}_data_key_name_generator check (
        typeof(generator) = 'text'
        and length(cast(generator as blob)) <= 255
        and instr(cast(generator as blob), x'00') = 0
        and generator not glob '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'),
    constraint {prefix}_data_key_name_last_version check (
        typeof(last_version) = 'integer' and last_version between 0 and 65535),
    constraint {prefix}_data_key_name_removed check (typeof(removed) = 'integer' and removed in (0, 1)),
    constraint {prefix}_data_key_name_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    constraint {prefix}_data_key_name_mac check (typeof(mac) = 'blob' and length(mac) = 32),
    constraint {prefix}_data_key_name_ik_kid_fkey foreign key (ik_kid)
        references {prefix}_installation_key (ik_kid),
    constraint {prefix}_data_key_name_root_key_fkey foreign key (root_key_id)
        references {prefix}_root_key (private_id) on delete cascade
);

-- Which names a rekey still has to do is asked again after each page of them.
create index {prefix}_data_key_name_ik_kid_idx on {prefix}_data_key_name (ik_kid, root_key_id, purpose);

create trigger {prefix}_data_key_name_no_replace
before insert on {prefix}_data_key_name
when exists (select 1 from {prefix}_data_key_name where root_key_id = new.root_key_id and purpose = new.purpose)
    or exists (select 1 from {prefix}_data_key_name where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_data_key_name_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_data_key_name_immutable
before update on {prefix}_data_key_name
when old.rowid <> new.rowid or old.root_key_id is not new.root_key_id or old.purpose is not new.purpose
begin
    select raise(abort, '{prefix}_data_key_name_immutable: what identifies a name never changes');
end;

create trigger {prefix}_data_key_name_seq_grows
before update of seq, generator, last_version, removed, ik_kid, mac on {prefix}_data_key_name
when new.seq <= old.seq
begin
    select raise(abort, '{prefix}_data_key_name_seq_grows: a change needs a greater sequence number');
end;

create trigger {prefix}_data_key_name_last_grows
before update of last_version on {prefix}_data_key_name
when new.last_version < old.last_version
begin
    select raise(abort, '{prefix}_data_key_name_last_grows: a number that was used could come twice');
end;

-- When the root key is deleted, its row is gone before this cascades to its names.
create trigger {prefix}_data_key_name_kept
before delete on {prefix}_data_key_name
when exists (select 1 from {prefix}_root_key where private_id = old.root_key_id)
begin
    select raise(abort, '{prefix}_data_key_name_kept: without its row numbers of a removed key could come twice');
end;

-- A name is removed before its key is deleted, which has to follow in the same transaction.
create trigger {prefix}_data_key_name_free
after insert on {prefix}_data_key_name
when new.removed = 1
begin
    update {prefix}_data_key set leaving = 0 where root_key_id = new.root_key_id and purpose = new.purpose;
end;

create trigger {prefix}_data_key_name_free_update
after update of removed on {prefix}_data_key_name
when new.removed = 1
begin
    update {prefix}_data_key set leaving = 0 where root_key_id = new.root_key_id and purpose = new.purpose;
end;

create trigger {prefix}_data_key_stays_leaving
before update of leaving on {prefix}_data_key
when old.leaving = 0 and new.leaving is null
begin
    select raise(abort, '{prefix}_data_key_stays_leaving: a key whose name is removed is deleted');
end;

create trigger {prefix}_data_key_named
after insert on {prefix}_data_key
when exists (
    select 1 from {prefix}_data_key_name
    where root_key_id = new.root_key_id and purpose = new.purpose and (removed = 1 or last_version >= new.head_version))
begin
    select raise(abort, '{prefix}_data_key_named: the name is removed, or had the number of the head before');
end;

-- When the root key is deleted, its row is gone before this cascades to its data keys.
create trigger {prefix}_data_key_leaves_name
before delete on {prefix}_data_key
when exists (select 1 from {prefix}_root_key where private_id = old.root_key_id)
    and not exists (
        select 1 from {prefix}_data_key_name
        where root_key_id = old.root_key_id and purpose = old.purpose and removed = 1 and last_version >= max(
            (select coalesce(max(version), 0) from {prefix}_data_key_version where data_key_id = old.private_id),
            (select coalesce(max(version), 0) from {prefix}_tombstone where key_id = old.private_id)))
begin
    select raise(abort, '{prefix}_data_key_leaves_name: its name has to say first how far its numbers went');
end;

-- Here and not with the table, because they look at both kinds of versions.
create trigger {prefix}_tombstone_not_live
before insert on {prefix}_tombstone
when exists (select 1 from {prefix}_root_key_version where root_key_id = new.key_id and version = new.version)
    or exists (select 1 from {prefix}_data_key_version where data_key_id = new.key_id and version = new.version)
    or exists (select 1 from {prefix}_root_key_version where private_id = new.private_id)
    or exists (select 1 from {prefix}_data_key_version where private_id = new.private_id)
begin
    select raise(abort, '{prefix}_tombstone_not_live: the version is there');
end;

create trigger {prefix}_tombstone_dense
before insert on {prefix}_tombstone
when new.version > 1 + max(
    (select coalesce(max(version), 0) from {prefix}_root_key_version where root_key_id = new.key_id),
    (select coalesce(max(version), 0) from {prefix}_data_key_version where data_key_id = new.key_id),
    (select coalesce(max(version), 0) from {prefix}_tombstone where key_id = new.key_id))
begin
    select raise(abort, '{prefix}_tombstone_dense: versions are numbered 1, 2, 3 and so on, none skipped or repeated');
end;
