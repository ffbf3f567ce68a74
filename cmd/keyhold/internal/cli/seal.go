package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

const contextUsage = "what the data belongs to, such as a table, a column and a row; repeated for each part, in this order"

func (a *app) sealCommand() *cobra.Command {
	var ref key.Ref
	var parts []string
	c := &cobra.Command{
		Use:     "seal --scope S --purpose P [--context C]... <in >out",
		Aliases: []string{"encrypt"},
		Short:   "Encrypt standard input to standard output",
		Long: fmt.Sprintf(`Encrypts standard input, at most %d MiB, with the data key of a scope and purpose, and writes the
ciphertext, which has %d bytes more, to standard output. If anything is wrong, nothing is written. One --context is its
bytes; several are encoded so that no other list of them is the same.`, envelope.MaxPlaintext>>20, envelope.AttachedOverhead),
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if ref.Scope == "" || ref.Purpose == "" {
				return usageError("seal needs --scope and --purpose", "")
			}
			return a.with(ctx, keyhold.Config{}, func(s *session) error {
				plaintext, err := readAll(ctx, a.in, envelope.MaxPlaintext)
				if err != nil {
					return err
				}
				sealed, err := s.Seal(ctx, ref, plaintext, keyhold.Context(parts...))
				if err != nil {
					return unknown(ctx, s, ref, err)
				}
				return a.write(sealed)
			})
		},
	}
	refFlags(c, &ref, &parts)
	return c
}

func refFlags(c *cobra.Command, ref *key.Ref, parts *[]string) {
	c.Flags().StringVar((*string)(&ref.Scope), "scope", "", "the scope")
	c.Flags().StringVar((*string)(&ref.Purpose), "purpose", "", "the purpose of the data key")
	c.Flags().StringArrayVar(parts, "context", nil, contextUsage)
}

// readAll reads in to its end, but at most limit bytes and one.
func readAll(ctx context.Context, in io.Reader, limit int64) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	// A read of a terminal or a pipe cannot be interrupted; the process ends before it does.
	go func() {
		data, err := io.ReadAll(io.LimitReader(in, limit+1))
		done <- result{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-done:
		switch {
		case r.err != nil:
			return nil, failed("input", "cannot read standard input: "+pathReason(r.err), "")
		case int64(len(r.data)) > limit:
			return nil, failed("too_large", fmt.Sprintf("standard input has more than %d bytes, which is the limit", limit), "")
		}
		return r.data, nil
	}
}
