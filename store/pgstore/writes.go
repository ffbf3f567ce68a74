package pgstore

import (
	"context"
	"fmt"
	"math"

	"keyhold.example/keyhold/store"
)

// The installation first: who loses a race for it has to find it, and not its key.
var insertInstallation = define(`
with new as (
    insert into {schema}{prefix}_installation (only_row, inst, ik_kid, seq, active_slot, mac)
    values (1, $1::bytea, $2::bytea, $3::bigint, $4::text, $5::bytea)
    on conflict (only_row) do nothing
    returning ik_kid)
insert into {schema}{prefix}_installation_key (ik_kid)
select ik_kid from new
returning 1`)

// Initialize implements [store.Store].
func (s *Store) Initialize(ctx context.Context, in store.Installation) error {
	return s.tables.explain(ctx, "initialize", s.initialize(ctx, &in))
}

func (s *Store) initialize(ctx context.Context, in *store.Installation) error {
	seq, invalid := integer(in.Seq)
	return s.write(ctx, func(w *writer) error {
		first := s.tables.statement(insertInstallation, in.Inst, in.IKKID, seq, storable(string(in.ActiveSlot)), in.MAC)
		first.done = func(rows int) error {
			if rows == 0 {
				return store.ErrConflict
			}
			return invalid
		}
		return w.last(ctx, append([]statement{first, s.insertSlots(in.Slots)}, s.rootsFit(nil)...)...)
	})
}

var (
	insertRootKeys = define(`
insert into {schema}{prefix}_root_key
    (private_id, scope_id, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac)
select n.private_id, n.scope_id::{scope_type}, n.seq, n.head_version, n.rotate_every, n.max_messages, nullif(n.rotate_at, 0),
    n.ik_kid, n.mac
from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[],
        $10::text[]) with ordinality
    as n (private_id, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac, scope_id, i)
where exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
order by n.i
on conflict (scope_id) do nothing
returning private_id`)

	insertDataKeys = define(`
insert into {schema}{prefix}_data_key
    (private_id, root_key_id, purpose, seq, head_version, rotate_every, max_messages, generator, rotate_at, ik_kid, mac)
select n.private_id, n.root_key_id, n.purpose, n.seq, n.head_version, n.rotate_every, n.max_messages, n.generator,
    nullif(n.rotate_at, 0), n.ik_kid, n.mac
from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[],
        $10::text[], $11::text[], $12::text[]) with ordinality
    as n (private_id, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac, root_key_id, purpose, generator, i)
where exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
    and exists (select 1 from {schema}{prefix}_root_key r where r.private_id = n.root_key_id)
order by n.i
on conflict (root_key_id, purpose) do nothing
returning private_id`)

	// With $1 only keys that have no version and no tombstone yet get any: those that were inserted just before. Any
	// other has at least its head, or no transaction could have committed it.
	insertRootKeyVersions = define(`
insert into {schema}{prefix}_root_key_version
    (private_id, root_key_id, version, state, alg, commitment, key, created, ik_kid)
select n.private_id, n.key_id, n.version, n.state, n.alg, n.commitment, n.key, n.created, n.ik_kid
from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[], $9::bigint[],
        $10::bytea[]) with ordinality
    as n (private_id, key_id, version, state, alg, commitment, key, created, ik_kid, i)
where exists (select 1 from {schema}{prefix}_root_key k where k.private_id = n.key_id)
    and ($1::boolean is false
        or not exists (select 1 from {schema}{prefix}_root_key_version v where v.root_key_id = n.key_id)
        and not exists (select 1 from {schema}{prefix}_tombstone t where t.key_id = n.key_id))
order by n.i`)

	insertDataKeyVersions = define(`
insert into {schema}{prefix}_data_key_version
    (private_id, data_key_id, version, state, alg, commitment, key, created, root_key_version_id)
select n.private_id, n.key_id, n.version, n.state, n.alg, n.commitment, n.key, n.created, n.parent
from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[], $9::bigint[],
        $10::text[]) with ordinality
    as n (private_id, key_id, version, state, alg, commitment, key, created, parent, i)
where exists (select 1 from {schema}{prefix}_data_key k where k.private_id = n.key_id)
    and ($1::boolean is false
        or not exists (select 1 from {schema}{prefix}_data_key_version v where v.data_key_id = n.key_id)
        and not exists (select 1 from {schema}{prefix}_tombstone t where t.key_id = n.key_id))
order by n.i`)

	insertTombstones = define(`
insert into {schema}{prefix}_tombstone (key_id, version, private_id, kind, alg, commitment)
select n.key_id, n.version, n.private_id, n.kind, n.alg, n.commitment
from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bytea[]) with ordinality
    as n (key_id, version, private_id, kind, alg, commitment, i)
order by n.i`)
)

func integer(n uint64) (int64, error) {
	if n > math.MaxInt64 {
		return 0, fmt.Errorf("the number %d is too great", n)
	}
	return int64(n), nil
}
