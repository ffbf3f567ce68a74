-- The root key of a scope. The application may rename or delete the scope by a cascade.
create table {prefix}_root_key (
    private_id text not null,
    scope_id {scope_type} not null,
    seq integer not null,
    head_version integer not null,
    head_state integer not null default 2,
    rotate_every integer not null,
    max_messages integer not null,
    rotate_at integer,
    ik_kid blob not null,
    mac blob not null,
    created integer not null default (cast(strftime('%s', 'now') as integer)),

    constraint {prefix}_root_key_pkey primary key (private_id),
    constraint {prefix}_root_key_scope_id_key unique (scope_id),
    constraint {prefix}_root_key_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) <= 64
        and private_id glob 'krk_?*'),
    constraint {prefix}_root_key_scope_id check ({scope_check}),
    constraint {prefix}_root_key_seq check (typeof(seq) = 'integer' and seq >= 1),
    constraint {prefix}_root_key_head_version check (typeof(head_version) = 'integer' and head_version between 1 and 65535),
    constraint {prefix}_root_key_head_state check (head_state = 2),
    constraint {prefix}_root_key_rotate_every check (typeof(rotate_every) = 'integer' and rotate_every >= 0),
    constraint {prefix}_root_key_max_messages check (typeof(max_messages) = 'integer' and max_messages >= 0),
    constraint {prefix}_root_key_rotate_at check (
        rotate_at is null or typeof(rotate_at) = 'integer' and rotate_at > 0 and rotate_every > 0),
    constraint {prefix}_root_key_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    constraint {prefix}_root_key_mac check (typeof(mac) = 'blob' and length(mac) = 32),
    constraint {prefix}_root_key_created check (typeof(created) = 'integer' and created > 0),
    constraint {prefix}_root_key_ik_kid_fkey foreign key (ik_kid)
        references {prefix}_installation_key (ik_kid),
    -- With head_state: at the end of each transaction the head is there, and active.
    constraint {prefix}_root_key_head_fkey foreign key (private_id, head_version, head_state)
        references {prefix}_root_key_version (root_key_id, version, state) deferrable initially deferred{scope_reference}
);

create index {prefix}_root_key_rotate_at_idx on {prefix}_root_key (rotate_at, private_id) where rotate_at is not null;

create trigger {prefix}_root_key_no_replace
before insert on {prefix}_root_key
when exists (select 1 from {prefix}_root_key where private_id = new.private_id)
    or exists (select 1 from {prefix}_root_key where scope_id = new.scope_id)
    or exists (select 1 from {prefix}_root_key where rowid = new.rowid)
begin
    select raise(abort, '{prefix}_root_key_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_root_key_no_replace_update
before update on {prefix}_root_key
when old.rowid <> new.rowid
    or exists (select 1 from {prefix}_root_key where scope_id = new.scope_id and private_id <> old.private_id)
begin
    select raise(abort, '{prefix}_root_key_no_replace_update: a row never takes the place of another');
end;

create trigger {prefix}_root_key_immutable
before update of private_id, created on {prefix}_root_key
when old.private_id is not new.private_id or old.created is not new.created
begin
    select raise(abort, '{prefix}_root_key_immutable: what identifies a root key never changes');
end;

create trigger {prefix}_root_key_seq_grows
before update of seq, head_version, rotate_every, max_messages, ik_kid, mac on {prefix}_root_key
when new.seq <= old.seq
begin
    select raise(abort, '{prefix}_root_key_seq_grows: a new manifest needs a greater sequence number');
end;

create trigger {prefix}_root_key_head_forward
before update of head_version on {prefix}_root_key
when new.head_version < old.head_version
begin
    select raise(abort, '{prefix}_root_key_head_forward: the head never goes back');
end;

create trigger {prefix}_root_key_epoch_update
after update of seq, scope_id on {prefix}_root_key
begin
    insert into {prefix}_epoch (bucket, n)
    values (max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr(new.private_id, 5, 1))) - 1), abs(random() % 1000000000) + 1);
end;

create trigger {prefix}_root_key_epoch_delete
after delete on {prefix}_root_key
begin
    insert into {prefix}_epoch (bucket, n)
    values (max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr(old.private_id, 5, 1))) - 1), abs(random() % 1000000000) + 1);
end;

create table {prefix}_root_key_version (
    private_id text not null,
    root_key_id text not null,
    version integer not null,
    state integer not null,
    alg integer not null,
    commitment blob not null,
    -- Wrapped under the installation key that ik_kid names.
    key blob not null,
    ik_kid blob not null,
    created integer not null,
    -- When it was disabled.
    disabled integer,

    constraint {prefix}_root_key_version_pkey primary key (private_id),
    constraint {prefix}_root_key_version_version_key unique (root_key_id, version),
    -- For the foreign key of the head.
    constraint {prefix}_root_key_version_state_key unique (root_key_id, version, state),
    constraint {prefix}_root_key_version_private_id check (
        typeof(private_id) = 'text'
        and length(private_id) = length(cast(private_id as blob))
        and length(private_id) <= 64
        and private_id glob 'krkv_?*'),
    constraint {prefix}_root_key_version_version check (typeof(version) = 'integer' and version between 1 and 65535),
    -- 1 pending, 2 active, 3 retired, 4 disabled. 5, destroyed, is a tombstone.
    constraint {prefix}_root_key_version_state check (typeof(state) = 'integer' and state between 1 and 4),
    -- 1, and 0 for what an import brought.
    constraint {prefix}_root_key_version_alg check (typeof(alg) = 'integer' and alg between 0 and 1),
    constraint {prefix}_root_key_version_commitment check (typeof(commitment) = 'blob' and length(commitment) = 32),
    constraint {prefix}_root_key_version_key check (typeof(key) = 'blob' and length(key) > 0),
    constraint {prefix}_root_key_version_created check (typeof(created) = 'integer' and created > 0),
    constraint {prefix}_root_key_version_disabled check (
        typeof(disabled) in ('integer', 'null') and (disabled is not null) = (state = 4) and coalesce(disabled, 1) > 0),
    constraint {prefix}_root_key_version_ik_kid check (typeof(ik_kid) = 'blob' and length(ik_kid) = 16),
    constraint {prefix}_root_key_version_ik_kid_fkey foreign key (ik_kid)
        references {prefix}_installation_key (ik_kid),
    constraint {prefix}_root_key_version_key_fkey foreign key (root_key_id)
        references {prefix}_root_key (private_id) on delete cascade
);

create unique index {prefix}_root_key_version_one_active on {prefix}_root_key_version (root_key_id) where state = 2;

create index {prefix}_root_key_version_pending_idx on {prefix}_root_key_version (created, root_key_id) where state = 1;

create trigger {prefix}_root_key_version_no_replace
before insert on {prefix}_root_key_version
when exists (select 1 from {prefix}_root_key_version where private_id = new.private_id)
    or exists (select 1 from {prefix}_root_key_version where root_key_id = new.root_key_id and version = new.version)
    or exists (select 1 from {prefix}_root_key_version where rowid = new.rowid)
    or new.state = 2 and exists (select 1 from {prefix}_root_key_version where root_key_id = new.root_key_id and state = 2)
begin
    select raise(abort, '{prefix}_root_key_version_no_replace: a row that is there is never replaced');
end;

create trigger {prefix}_root_key_version_no_replace_update
before update on {prefix}_root_key_version
when old.rowid <> new.rowid
    or new.state = 2 and exists (
        select 1 from {prefix}_root_key_version where root_key_id = new.root_key_id and state = 2 and private_id <> old.private_id)
begin
    select raise(abort, '{prefix}_root_key_version_no_replace_update: a row never takes the place of another');
end;

create trigger {prefix}_root_key_version_dense
before insert on {prefix}_root_key_version
when new.version <> 1 + max(
    (select coalesce(max(version), 0) from {prefix}_root_key_version where root_key_id = new.root_key_id),
    (select coalesce(max(version), 0) from {prefix}_tombstone where key_id = new.root_key_id))
begin
    select raise(abort, '{prefix}_root_key_version_dense: versions are numbered 1, 2, 3 and so on, none skipped or repeated');
end;

create trigger {prefix}_root_key_version_not_again
before insert on {prefix}_root_key_version
when exists (select 1 from {prefix}_tombstone where private_id = new.private_id and private_id <> '')
begin
    select raise(abort, '{prefix}_root_key_version_not_again: the version of this id was destroyed');
end;

-- Retired ones are what an import brings.
create trigger {prefix}_root_key_version_state_new
before insert on {prefix}_root_key_version
when not (new.state in (1, 3)
    or new.state = 2 and exists (
        select 1 from {prefix}_root_key where private_id = new.root_key_id and head_version = new.version))
begin
    select raise(abort, '{prefix}_root_key_version_state_new: a new version is pending, or retired, or the active head');
end;

create trigger {prefix}_root_key_version_state_change
before update of state on {prefix}_root_key_version
when old.state <> new.state and not (
    old.state = 1 and new.state = 2 and exists (
        select 1 from {prefix}_root_key where private_id = new.root_key_id and head_version = new.version)
    or old.state = 2 and new.state = 3 and exists (
        select 1 from {prefix}_root_key where private_id = new.root_key_id and head_version <> new.version)
    or old.state = 3 and new.state = 4
    or old.state = 4 and new.state = 3)
begin
    select raise(abort, '{prefix}_root_key_version_state_change: a version does not go from this state to that one');
end;

create trigger {prefix}_root_key_version_immutable
before update of private_id, root_key_id, version, alg, commitment, created on {prefix}_root_key_version
when old.private_id is not new.private_id or old.root_key_id is not new.root_key_id
    or old.version is not new.version or old.alg is not new.alg
    or old.commitment is not new.commitment or old.created is not new.created
begin
    select raise(abort, '{prefix}_root_key_version_immutable: what identifies a version never changes');
end;

-- When a key is deleted, its row is gone before this cascades to its versions, and any of them may go.
create trigger {prefix}_root_key_version_destroyable
before delete on {prefix}_root_key_version
when old.state not in (1, 4) and exists (select 1 from {prefix}_root_key where private_id = old.root_key_id)
begin
    select raise(abort, '{prefix}_root_key_version_destroyable: only a pending or disabled version can be destroyed');
end;

create trigger {prefix}_root_key_version_bury
after delete on {prefix}_root_key_version
begin
    insert into {prefix}_tombstone (key_id, version, private_id, kind, alg, commitment)
    values (old.root_key_id, old.version, old.private_id, 'kek', old.alg, old.commitment);
    insert into {prefix}_epoch (bucket, n)
    values (max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr(old.root_key_id, 5, 1))) - 1), abs(random() % 1000000000) + 1);
end;
