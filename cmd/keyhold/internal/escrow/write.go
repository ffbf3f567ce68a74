package escrow

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
)

// Plan is what [Prepare] found to be in order, for [Plan.Write] to carry out.
type Plan struct {
	paths      []string
	custodians []custodian // of each path
	threshold  int
}

// Prepare checks what an escrow is to be, and reads the files that name recipients. It makes nothing.
//
// A recipient is an age recipient's text, age1... or age1pq1... (hybrid post-quantum), or "@" and the name of a file
// with one on each line, where empty lines and lines that begin with "#" mean nothing. Each stands for one custodian; a
// custodian who has several identities is a file.
//
// With threshold 0 there is one recovery file, at path, which any of the recipients can open. Otherwise there is one
// file for each custodian, with that custodian's share, of which threshold give the key; the first of three is then,
// for path "recovery.age", "recovery-1-of-3.age". threshold is at least 2.
//
// The error is [ErrRecipients] for recipients that are none, are named twice, or of two kinds in one file, and for a
// threshold that their number does not allow; [ErrFIPS]; [os.ErrExist] if a file is there that would be written; or one
// of reading a file of recipients.
func Prepare(path string, recipients []string, threshold int) (*Plan, error) {
	if err := available(); err != nil {
		return nil, fmt.Errorf("prepare escrow: %w", err)
	}
	all, err := custodians(recipients)
	if err != nil {
		return nil, fmt.Errorf("prepare escrow: %w", err)
	}
	p := &Plan{threshold: threshold}
	if threshold == 0 {
		one, err := together(all)
		if err != nil {
			return nil, fmt.Errorf("prepare escrow: %w", err)
		}
		p.paths, p.custodians = []string{path}, []custodian{one}
	} else {
		if threshold < 2 || threshold > len(all) {
			return nil, fmt.Errorf("prepare escrow: %w: %d shares cannot be needed of %d custodians, "+
				"it has to be at least 2 and at most all of them", ErrRecipients, threshold, len(all))
		}
		ext := filepath.Ext(path)
		for i := range all {
			p.paths = append(p.paths, fmt.Sprintf("%s-%d-of-%d%s", strings.TrimSuffix(path, ext), i+1, len(all), ext))
		}
		p.custodians = all
	}
	for _, file := range p.paths {
		if _, err := os.Lstat(file); err == nil {
			return nil, fmt.Errorf("prepare escrow: %w", &os.PathError{Op: "create", Path: file, Err: os.ErrExist})
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("prepare escrow: %w", err)
		}
	}
	return p, nil
}

// Files are the names of the files that [Plan.Write] makes, in the order of the custodians.
func (p *Plan) Files() []string { return append([]string(nil), p.paths...) }

// Write seals the recovery line that it is given, or shares of it, and makes the files, which only their owner can
// read. When it returns nil, all of them will be there after a crash too; for that, their folder has to be one that
// this user can read. A file that exists already is never touched: the error is then [os.ErrExist]. After any error
// none is left, unless the error says so; a crash can leave some. The line stays the caller's, and nothing of it is
// kept.
//
// What was written cannot be read again here: that takes a custodian's identity ([Source.Open]).
func (p *Plan) Write(line []byte) error { return p.write(line, (*os.File).Sync) }

func (p *Plan) write(line []byte, sync func(*os.File) error) error {
	lines, err := p.lines(line)
	if err != nil {
		return fmt.Errorf("write escrow: %w", err)
	}
	var files []file
	for i, l := range lines {
		sealed, err := encrypt(l.Reveal(), p.custodians[i].recipients)
		l.Clear()
		if err != nil {
			return fmt.Errorf("write escrow: seal %s: %w", p.paths[i], err)
		}
		files = append(files, file{p.paths[i], sealed})
	}
	if err := create(files, sync); err != nil {
		return fmt.Errorf("write escrow: %w", err)
	}
	return nil
}

// lines is what each file is to hold. Nothing is sealed that could not be opened: a line has to parse.
func (p *Plan) lines(line []byte) ([]secret.Bytes, error) {
	if p.threshold > 0 {
		return split(line, p.threshold, len(p.custodians))
	}
	ik, err := seal.ParseRecovery(line)
	if err != nil {
		return nil, err
	}
	defer ik.Close()
	return []secret.Bytes{ik.Recovery()}, nil
}

func encrypt(line []byte, recipients []age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	text := armor.NewWriter(&out)
	w, err := age.Encrypt(text, recipients...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(line); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), text.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

type file struct {
	path    string
	content []byte
}

// create makes all files, which have one folder, or none. It has sync make the content of each durable, and then their
// names.
func create(files []file, sync func(*os.File) error) (err error) {
	// Before any file is made: a folder that cannot be read cannot be synchronized.
	dir, err := os.Open(filepath.Dir(files[0].path))
	if err != nil {
		return fmt.Errorf("open the folder: %w", err)
	}
	defer dir.Close()
	var made []string
	defer func() {
		if err == nil {
			return
		}
		for _, path := range made {
			if removed := os.Remove(path); removed != nil {
				err = errors.Join(err, fmt.Errorf("this file is left, remove it: %w", removed))
			}
		}
	}()
	for _, f := range files {
		w, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		made = append(made, f.path)
		_, err = w.Write(f.content)
		if err == nil {
			err = sync(w)
		}
		if closed := w.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
	}
	return sync(dir)
}
