package demo

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

const byteOrderMark = "\ufeff"

// MaxRows is how many rows a demo takes.
const MaxRows = 100_000

// Table is the data of a demo.
type Table struct {
	Source     string // where it is from, for people
	SealColumn string
	Rows       []Row // at least one
}

// Row is one row of it.
type Row struct {
	Scope  key.Scope // of the column that names the tenant
	Secret string    // of the column to seal
	Rest   string    // the other columns, as JSON
}

// The tenants and people in it are invented: the domains end in .example, and the account numbers begin with ZZ,
// which is no country.
//
//go:embed customers.csv
var customers []byte

// Bundled is 1 000 invented customers of 8 invented tenants, whose account numbers are to be sealed.
func Bundled() (*Table, error) {
	t, err := Read(bytes.NewReader(customers), "customers.csv", "tenant", "iban")
	if err != nil {
		return nil, err
	}
	t.Source = "the bundled list of 1000 invented customers"
	return t, nil
}

// Read reads a CSV file in UTF-8 with a header of different names; scopeColumn and sealColumn are two of them. source
// names it in errors, which say which line and column is wrong.
func Read(r io.Reader, source, scopeColumn, sealColumn string) (*Table, error) {
	buffered := bufio.NewReader(r)
	// Some programs begin a file with a byte order mark, which is no part of the first column's name, nor of its
	// quotes.
	if begin, err := buffered.Peek(len(byteOrderMark)); err == nil && string(begin) == byteOrderMark {
		_, _ = buffered.Discard(len(byteOrderMark)) // they are in the buffer
	}
	in := csv.NewReader(buffered)
	in.ReuseRecord = true
	header, err := in.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s is empty: a header and at least one row are needed", source)
	}
	if err != nil {
		return nil, lineError(source, err)
	}
	header = slices.Clone(header)
	if err := checkHeader(source, header); err != nil {
		return nil, err
	}
	scopeAt, err := column(source, header, scopeColumn)
	if err != nil {
		return nil, err
	}
	sealAt, err := column(source, header, sealColumn)
	if err != nil {
		return nil, err
	}
	t := &Table{Source: source, SealColumn: sealColumn}
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, lineError(source, err)
		}
		if len(t.Rows) == MaxRows {
			return nil, fmt.Errorf("%s has more than %d rows, which is the limit", source, MaxRows)
		}
		line, _ := in.FieldPos(scopeAt)
		row, err := readRow(header, record, scopeAt, sealAt)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d, %w", source, line, err)
		}
		t.Rows = append(t.Rows, row)
	}
	if len(t.Rows) == 0 {
		return nil, fmt.Errorf("%s has a header and no rows", source)
	}
	return t, nil
}

func checkHeader(source string, header []string) error {
	for i, name := range header {
		switch {
		case !utf8.ValidString(name):
			return fmt.Errorf("%s: the name of column %d is not valid UTF-8", source, i+1)
		case slices.Contains(header[:i], name):
			return fmt.Errorf("%s has two columns %q", source, name)
		}
	}
	return nil
}

func readRow(header, record []string, scopeAt, sealAt int) (Row, error) {
	for i, value := range record {
		if !utf8.ValidString(value) {
			return Row{}, fmt.Errorf("column %q is not valid UTF-8", header[i])
		}
	}
	scope := key.Scope(strings.Clone(record[scopeAt]))
	if err := scope.Validate(); err != nil {
		reason := err.Error()
		if invalid := (*key.InvalidError)(nil); errors.As(err, &invalid) {
			reason = invalid.Reason
		}
		return Row{}, fmt.Errorf("column %q cannot name a scope: %s", header[scopeAt], reason)
	}
	if n := len(record[sealAt]); n > envelope.MaxPlaintext {
		return Row{}, fmt.Errorf("column %q has %d bytes, the limit is %d", header[sealAt], n, envelope.MaxPlaintext)
	}
	rest := map[string]string{}
	for i, value := range record {
		if i != scopeAt && i != sealAt {
			rest[header[i]] = value
		}
	}
	text, err := json.Marshal(rest)
	return Row{Scope: scope, Secret: strings.Clone(record[sealAt]), Rest: string(text)}, err
}

func column(source string, header []string, name string) (int, error) {
	at := slices.Index(header, name)
	if at < 0 {
		return 0, fmt.Errorf("%s has no column %q; its columns are %q", source, name, header)
	}
	return at, nil
}

// lineError says what is wrong with the form of the file.
func lineError(source string, err error) error {
	var wrong *csv.ParseError
	if !errors.As(err, &wrong) {
		return fmt.Errorf("read %s: %w", source, err)
	}
	if errors.Is(err, csv.ErrFieldCount) {
		return fmt.Errorf("%s, line %d: it does not have as many fields as the header", source, wrong.Line)
	}
	return fmt.Errorf("%s, line %d, character %d: %w", source, wrong.Line, wrong.Column, wrong.Err)
}
