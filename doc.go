// Package keyhold keeps the encryption keys of an application in the database that the application already runs.
//
// # The hierarchy
//
//	external root       a go-kms-wrapping Wrapper: a cloud KMS, an HSM, Vault, or a local root from a file
//	 └ installation key made once, sealed by the external root in a root slot
//	    └ root key      one for each scope; has versions; wrapped under the installation key
//	       └ data key   one for each scope and purpose; has versions; wrapped under a version of its root key
//
// A scope is a rotation boundary, such as a tenant: the application's own id for it. A purpose is what a data key is
// for. Of a key's versions one is the head, which alone seals; older ones open. Rotating adds a version; rewrapping
// wraps older versions under the newest root key, without touching the data.
//
// # Use
//
// [New] opens an installation with its external root, which is called once. Then [Manager.CreateScope] makes the keys
// of a tenant, [Manager.Seal] and [Manager.Open] encrypt and decrypt with them, and [Manager.Rotate] changes them. What
// is sealed is bound to its scope, its purpose and to a [Context]: a ciphertext that was copied to another tenant or to
// another row does not open.
//
// Whoever keeps ciphertext in a table of the same database uses [Manager.SealDetached] and keeps the key version's id
// in a column that references kms_data_key_version(private_id): then the database itself refuses to lose a key that is
// in use.
//
// Whoever only wants the bytes of keys, by name and version, to encrypt with something else, makes raw keys
// ([Manager.MakeRaw], [Manager.Raw]). Their names are purposes. Package dekmanager has the same in another API.
//
// # Promises
//
// A version seals only after it was read back, committed, from the database. What was made inside the application's own
// transaction is used by calls inside that transaction alone, and is nowhere after a rollback. A change of a key is
// seen at once by the Manager that made it, and within 7 s by every other that the database answers, with one query for
// all keys in between; [Config.Strict] looks at every call. Any number of processes may create, rotate and rewrap the
// same keys at once.
//
// [Manager.Run] rotates each key as its [Policy] says, rewraps and cleans up; without it, nothing rotates by itself.
// Any number of processes may run at once, and each due key gets one new version. Where the database is away, keys that
// were used before go on for [Config.SealFor] and [Config.OpenFor]; then calls return [ErrStale]. docs/rotation.md has
// all times and limits.
//
// Nothing that is read from the database is trusted: keys that were moved to another place, states, numbers and
// policies that were changed by hand are refused with an [*IntegrityError]. The formats are described byte for byte in
// docs/format.md, what is promised against whom in docs/threat-model.md.
//
// Everything that is stored and sent stays readable by every later version of this module.
package keyhold
