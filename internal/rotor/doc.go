// Package rotor finds what is due in a fleet of instances, and lets it be done by one of them at a time.
//
// What follows is the protocol between instances: everything that keeps keys right and new while any number of
// processes use them, each of which may be started, stopped, paused or cut off at any moment. No process leads. Nobody
// trusts a clock of anybody's but the database's, and that only to decide when something is due.
//
// # States
//
// A version is pending when it was added, active when it is the head and seals, retired, disabled, destroyed
// (docs/format.md, section 7). Every change of a state, and every new version, is one transaction that moves the key's
// manifest from the sequence number that the writer saw to the next. Whoever finds another number writes nothing.
//
//	add       head v, no pending      version v+1, pending; rotate_at moves on
//	activate  v+1 pending             v retired, v+1 active and the head
//
// # One winner
//
// A rotation that is due adds a version only after the head that it saw, and only while rotate_at has come. The unique
// (key, number) and the sequence number decide: of N instances that find the same key due, one adds, and the others
// find that they need not. rotate_at is a column that is written in the same transaction, so that a restart changes
// nothing, and a key that was due while nobody ran is rotated once. rotate_at cannot be put off by who can write to the
// table: it may not be later than the newest version's authenticated time and the authenticated period.
//
// # Nothing seals that may vanish
//
// A version seals after it was read as active from the primary, committed; never because its writer knows it. What was
// read inside the application's transaction is used in that transaction alone. A commit whose outcome is unknown is
// read again. With keyhold.Acknowledged, what was read seals only after a later commit of the reader's own was
// acknowledged as durably as the database makes any: the log is written in order, so whatever replica has the later
// commit has the key.
//
// # Publish, then activate
//
// A version that was added because it was due stays pending until every live instance has signed that it has seen the
// epochs of that time, or for 8 seconds, within which every instance has asked whose questions are answered. Then
// whoever sweeps makes it the head. So it can be opened everywhere, also by who is cut off from then on, before anybody
// seals with it. It is done at once where no other instance lives, when the key is due again meanwhile, when its head
// has sealed four fifths of what it may, and when a person asked for the rotation (keyhold.Manager.Rotate): then there
// is a reason to be quick, and who does not know the version yet asks for it.
//
// # Knowing
//
// An instance asks for all epochs at once, every 5 seconds: the first call that needs them, or Run before that. The
// question takes 2 seconds at most, and is asked again; longer only where nothing is sealed before it has an answer. A
// change moves the epoch of its key's bucket in its own transaction. What was read is used as long as its epochs, read
// before it, are those of now. So 7 seconds after the commit no instance whose questions are answered seals with a
// version that was retired. One whose questions are not answered goes on for Config.SealFor by its monotonic clock,
// which it checks against the wall clock for the time that the machine was suspended; then it refuses.
//
// An instance that seals signs: it writes that it lives, for how long it may go on sealing, and which epochs it has
// seen, that is: it uses nothing any more that was read before these. It registers by its first sign, before it first
// seals. From then on a question is a sign, too, when the last one is a minute old, or a third of the time for which it
// may seal, and when an earlier question has seen a change that it has not signed for. So the others know that a change
// was seen after two questions; and where nothing changes, little is written.
//
// A sign that cannot be written, because somebody has locked the database, takes half of its question at most, and what
// is left of it reads the epochs; then signs are tried again every 10 seconds, beside the questions. A process that has
// to register before it may seal waits longer for that. What counts is the last sign that was written: an instance
// seals no longer after that than it said, whatever it has read since.
//
// By the database's clock it is gone when its last sign is older than it may seal, and a minute: it has refused by
// then, so that nobody has to wait for it, whatever has become of it. If it comes back it signs anew, and has seen
// everything before it seals.
//
// Destroying a version asks for the signs: a live instance that has not seen the key's last change may still work with
// the version, and is named.
//
// # Leases
//
// A sweep takes a lease on a bucket before it works at its keys, so that two do not do the same work. Nothing is right
// only because of a lease. It has an owner, an end by the database's clock, and a fence that grows with each new owner;
// what is written under it says the fence, and is refused if it is not the last one, so that who was paused for longer
// than the lease does not go on.
//
// # What is lost when an instance dies
//
//	before the add is committed        nothing; the key is still due
//	between add and activate           nothing; the version is pending, and the next sweep makes it the head
//	while it wraps data keys anew      nothing; each version is replaced by itself, and the next sweep goes on
//	while it has a lease               a minute, until the lease is over; for what is done now and then, the time until
//	                                   it would be done next
//	with messages of a budget          those messages: they count as sealed
package rotor
