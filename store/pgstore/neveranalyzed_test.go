package pgstore

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// fewReads is how many rows a part of a plan may read in all: five pages of 1000, which is less than the data keys are.
const fewReads = 5000

// compiledFrom is from which cost on a server compiles a statement that nobody told otherwise: jit_above_cost.
const compiledFrom = 100_000

// What lists keys by the page reads about a page, by the plan that the server chooses itself, also before it has
// analyzed the tables for the first time, when it guesses how many rows there are of anything. Where there is nothing
// to list a guess that some row is soon found is wrong for each of the page's keys. The server does not compile the
// statements either, which takes longer than they do: it would from a cost on, and they cost less.
func TestPlansOfPagesAreGoodBeforeTheFirstAnalyze(t *testing.T) {
	t.Parallel()
	for name, analyzed := range map[string]bool{"never analyzed": false, "analyzed with one scope": true} {
		t.Run(name, func(t *testing.T) { plansOfPages(t, analyzed) })
	}
}

func plansOfPages(t *testing.T, analyzed bool) {
	ctx := t.Context()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	must(t, s.Migrate(ctx))
	must(t, s.Initialize(ctx, storetest.NewMaker(1).Installation()))
	conn, err := s.Pool().Acquire(ctx)
	must(t, err)
	defer conn.Release()
	var kid []byte
	var scopes, purposes []string
	must(t, conn.QueryRow(ctx, "select ik_kid from kms_installation").Scan(&kid))
	for i := range 250 {
		scopes, purposes = append(scopes, fmt.Sprint("many_", i+1)), append(purposes, "one")
	}
	for _, text := range fillWithout(analyzed) {
		_, err := conn.Exec(ctx, text, pgx.QueryExecModeSimpleProtocol)
		must(t, err)
	}
	for p, want := range map[key.Purpose]int{"one": 0, "another": 1500} {
		list, err := s.Lacking(ctx, p, "", 1500)
		must(t, err)
		if len(list) != want || !slices.IsSorted(list) || len(slices.Compact(list)) != want {
			t.Errorf("Lacking(%q), of two pages: %d scopes; want %d, each once, in their order", p, len(list), want)
		}
	}
	for _, test := range []struct {
		name string
		q    query
		args []any
		rows int
	}{
		{"lagging", laggingQuery, []any{"", int64(101)}, 1},
		{"not under", notUnderQuery, []any{"", int64(101), kid}, 1},
		{"not under another", notUnderQuery, []any{"", int64(101), make([]byte, 16)}, 102},
		{"lacking none", firstLackingQuery, []any{int64(100), "one"}, 1},
		{"lacking none, next", nextLackingQuery, []any{int64(1000), "one", "many_1"}, 1},
		{"lacking all", firstLackingQuery, []any{int64(250), "another"}, 251},
		{"families", familiesQuery, []any{scopes}, 1 + 250*(1+2+3*(1+2)) + 75},
		{"keys", keysQuery, []any{scopes, purposes}, 1 + 250*(1+2+1+2) + 25},
		{"due", dueQuery, []any{int64(0), "", int64(0), int64(store.AllBuckets), int64(1000)}, 600},
	} {
		t.Run(test.name, func(t *testing.T) {
			var text string
			must(t, conn.QueryRow(ctx, "explain (analyze, format json) "+s.tables.text[test.q],
				append([]any{pgx.QueryExecModeExec}, test.args...)...).Scan(&text))
			var plans []struct{ Plan donePlan }
			must(t, json.Unmarshal([]byte(text), &plans))
			p := &plans[0].Plan
			if p.Cost >= compiledFrom {
				t.Errorf("it costs %.0f, and is compiled from %d on", p.Cost, compiledFrom)
			}
			if p.Rows != float64(test.rows) {
				t.Errorf("%.0f rows; want %d", p.Rows, test.rows)
			}
			p.each(func(p *donePlan) {
				read := p.Loops * (p.Rows + p.Filtered + p.NotJoined + p.Rechecked)
				if p.Type == "Seq Scan" && p.Loops > 1 && read > 0 && slices.Contains(grows, p.Table) {
					t.Errorf("%s is read %.0f times", p.Table, p.Loops)
				}
				// An eighth of all scopes may be found by reading a table once.
				eighth := test.q == familiesQuery || test.q == keysQuery
				if read > fewReads && !(eighth && p.Type == "Seq Scan" && p.Loops == 1) {
					t.Errorf("%s of %s %s reads %.0f rows in %.0f loops", p.Type, p.Table, p.CTE, read, p.Loops)
				}
			})
			if t.Failed() {
				t.Logf("the plan:\n%s", text)
			}
		})
	}
}

// fillWithout fills tables with 2000 scopes of two root key versions and three purposes, all of whose versions are
// under the root key's head. Each tenth data key has a pending version. Nothing lags, is under another installation key
// or lacks any of the purposes, and no other key is due before the year 2096. All but the first 250 have many versions.
// The tables are not analyzed then, but, if so asked, when there is only the first scope.
func fillWithout(analyzed bool) []string {
	texts := []string{"set session_replication_role = replica"}
	for _, table := range grows {
		texts = append(texts, "alter table "+table+" set (autovacuum_enabled = off)")
	}
	var fill []string
	// Ids are in no order, as those that are random.
	words := strings.NewReplacer("{id}", "md5(random()::text)", "{b32}", "decode(repeat(md5(random()::text), 2), 'hex')",
		"{b93}", "decode(repeat('ab', 93), 'hex')", "{new}", "r.rotate_at between 4000000000 + {from} and 4000000000 + {to}")
	for _, text := range []string{`
insert into kms_root_key (private_id, scope_id, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac)
select 'krk_' || {id}, 'many_' || n, 1, 2, 31536000, 0, 4000000000 + n, ik_kid, {b32}
from generate_series({from}, {to}) n cross join kms_installation`, `
insert into kms_root_key_version (private_id, root_key_id, version, state, alg, commitment, key, created, ik_kid)
select 'krkv_' || {id}, r.private_id, v, 4 - v, 1, {b32}, {b93}, 1700000000, r.ik_kid
from kms_root_key r cross join generate_series(1, 2) v where {new}`, `
insert into kms_data_key
    (private_id, root_key_id, purpose, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac, generator)
select 'kdk_' || {id}, r.private_id, p, 5, 2, 7776000, 0, 4000000000 + r.rotate_at * 7919 % 7776000, r.ik_kid, {b32}, ''
from kms_root_key r cross join unnest('{one,two,three}'::text[]) p where {new}`, `
insert into kms_data_key_version
    (private_id, data_key_id, version, state, alg, commitment, key, created, root_key_version_id)
select 'kdkv_' || {id}, d.private_id, v, case v when 2 then 2 when 20 then 1 else 3 end, 1, {b32}, {b93}, 1700000000 + v, rv.private_id
from kms_data_key d cross join generate_series(1, 20) v
join kms_root_key r on r.private_id = d.root_key_id
join kms_root_key_version rv on rv.root_key_id = r.private_id and rv.version = r.head_version
where {new} and (v < 3 or r.rotate_at > 4000000250 and v < 20 or r.rotate_at % 10 = 0 and v = 20)`, `
insert into kms_usage (private_id, taken) select private_id, 1 from kms_data_key_version where version < 3 on conflict do nothing`} {
		fill = append(fill, words.Replace(text))
	}
	part := func(from, to string) {
		for _, text := range fill {
			texts = append(texts, strings.NewReplacer("{from}", from, "{to}", to).Replace(text))
		}
	}
	part("1", "1")
	if analyzed {
		texts = append(texts, "analyze")
	}
	part("2", "2000")
	return append(texts, "reset session_replication_role")
}

// donePlan is a node of a plan that was run.
type donePlan struct {
	Type      string  `json:"Node Type"`
	Table     string  `json:"Relation Name"`
	CTE       string  `json:"CTE Name"`
	Cost      float64 `json:"Total Cost"`
	Loops     float64 `json:"Actual Loops"`
	Rows      float64 `json:"Actual Rows"` // of each loop, as the next ones
	Filtered  float64 `json:"Rows Removed by Filter"`
	NotJoined float64 `json:"Rows Removed by Join Filter"`
	Rechecked float64 `json:"Rows Removed by Index Recheck"`
	Plans     []donePlan
}

func (p *donePlan) each(f func(*donePlan)) {
	f(p)
	for i := range p.Plans {
		p.Plans[i].each(f)
	}
}
