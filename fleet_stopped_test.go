//go:build unix

package keyhold_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// suspend suspends processes while none of them holds a lock in the database that others would have to wait for.
func (w *fleetWorld) suspend(t *testing.T, processes []*fleetProcess) {
	t.Helper()
	for range 100 {
		for _, p := range processes {
			must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
			var status syscall.WaitStatus // until all of its threads have stopped, one may still take a lock
			if _, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
				t.Fatalf("suspend a process: %v, %v", status, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := fleetExec(ctx, w.store, "update kms_instance set signed = signed")
		cancel()
		if err == nil {
			return
		}
		w.resume(t, processes)
		fleetPass(10 * time.Millisecond)
	}
	t.Fatal("the processes always hold a lock")
}

func (w *fleetWorld) resume(t *testing.T, processes []*fleetProcess) {
	t.Helper()
	for _, p := range processes {
		must(t, p.cmd.Process.Signal(syscall.SIGCONT))
	}
}

// Processes that were suspended while a version was retired, disabled and destroyed are waited for until they cannot
// seal any more. When they go on, no call that begins then works with that version, and what one was about to say when
// it was suspended is not stored.
func TestFleetOutlivesProcessesThatWereSuspended(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		m := w.open(t, w.store)
		must(t, m.CreateScope(t.Context(), tenant))
		w.exec(t, "create table secret (key_id text references kms_data_key_version (private_id))")
		first := ids(t, m, ref)[0]
		const sealFor = 5 * time.Second
		all := w.start(t, fleetSettings{SealFor: sealFor}, fleetSettings{SealFor: sealFor, Run: true})
		fleetObey(t, all, fleetOrder{Do: "write and store", Keys: []key.Ref{ref}, Every: 20 * time.Millisecond})
		awaitThat(t, "the processes are at it", func() bool {
			infos, err := m.Instances(t.Context())
			must(t, err)
			return len(infos) == len(all)
		})
		fleetPass(2 * time.Second)             // a busy machine needs some time for what they do
		t.Cleanup(func() { w.resume(t, all) }) // or they would never end
		w.suspend(t, all)
		suspended := time.Now()

		if n, err := m.Rotate(t.Context(), ref); n != 2 || err != nil {
			t.Fatalf("version %d, %v", n, err)
		}
		must(t, m.Disable(t.Context(), first))
		w.exec(t, "delete from secret")
		names := func(err error) {
			t.Helper()
			unseen, ok := errors.AsType[*keyhold.UnseenError](err)
			if !ok || len(unseen.Instances) != len(all) {
				t.Errorf("%v; want an error that names %d instances", err, len(all))
			}
		}
		names(m.Destroy(t.Context(), first))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		names(m.AwaitInstances(ctx))
		if fleetThorough() {
			must(t, m.AwaitInstances(t.Context()))
		} else {
			// As much time as they may seal passes, and the minute that is waited for besides is left out.
			fleetPass(sealFor + 500*time.Millisecond - time.Since(suspended))
			names(m.Destroy(t.Context(), first))
			w.exec(t, "update kms_instance set life = life - 62")
		}
		t.Logf("the processes count as gone after %v", time.Since(suspended))
		must(t, m.Destroy(t.Context(), first))
		resumed := time.Now()
		w.resume(t, all)
		fleetPass(1500 * time.Millisecond)

		second := ids(t, m, ref)[1]
		for i, a := range fleetObey(t, all, fleetOrder{Do: "stop"}) {
			var before, under, after int
			for _, call := range a.Calls {
				switch {
				case call.Over.Before(resumed):
					before++
					if call.Error != "" || !call.Opens && (!call.Stored || call.ID != first) {
						t.Errorf("process %d, before: %+v", i, call)
					}
				case call.Began.Before(resumed):
					under++ // when it was suspended; what it had stored by then is deleted
				case call.Opens:
					after++
					if call.Error == "" || call.Error == "stale" {
						t.Errorf("process %d opened with the destroyed version: %q", i, call.Error)
					}
				default:
					after++
					if call.Error != "" || call.ID != second || !call.Stored {
						t.Errorf("process %d, afterwards: %+v", i, call)
						break
					}
					if pt, err := m.OpenDetached(t.Context(), ref, call.ID, call.CT, keyhold.AAD{}); err != nil || string(pt) != "x" {
						t.Errorf("process %d: what was sealed afterwards opens as %q, %v", i, pt, err)
					}
				}
			}
			t.Logf("process %d: %d calls before, %d when it was suspended, %d after it was resumed", i, before, under, after)
			if before < 4 || under > 2 || after < 4 {
				t.Errorf("process %d: the test shows nothing of one of these times", i)
			}
		}
		if refs, err := m.References(t.Context(), first); err != nil || refs[0].Rows != 0 {
			t.Errorf("messages of the destroyed version: %v, %v", refs, err)
		}
		w.sound(t, m)
	})
}
