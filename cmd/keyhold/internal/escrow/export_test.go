package escrow

import "os"

// For tests from outside.
var (
	Split = split
	Join  = join
)

// WriteWith is [Plan.Write] with another way of making files durable.
func (p *Plan) WriteWith(line []byte, sync func(*os.File) error) error { return p.write(line, sync) }
