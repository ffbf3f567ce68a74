package rows

import (
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// CheckSlotChanges looks at the rules for what becomes of slots that are there.
func CheckSlotChanges(changes []store.SlotChange) error {
	named := map[key.ID]bool{}
	for _, c := range changes {
		switch {
		case named[c.ID]:
			return fmt.Errorf("root slot %q is named twice", string(c.ID))
		case c.From == key.Active && (c.To == key.Retired || c.To == key.Destroyed):
		case c.From == key.Retired && (c.To == key.Active || c.To == key.Destroyed):
		default:
			return fmt.Errorf("root slot %q from %v to %v: it is not allowed", string(c.ID), c.From, c.To)
		}
		named[c.ID] = true
	}
	return nil
}
