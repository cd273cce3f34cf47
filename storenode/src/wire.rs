//! The contract between a mount and a storage node: messages, replies, refusals, limits. No I/O.
//!
//! Every message is `POST /v1/<name>` with one [frame](crate::frame) as body and one frame as
//! reply: a small bincode head, and bulk bytes (parts, values) that are never re-encoded. Rule
//! numbers refer to docs/architecture.md ("The protocol").

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Largest head of a frame, bytes.
pub const HEAD_LEN_MAX: usize = 8 << 20;
/// Largest bulk of a frame, bytes: one full group (16 MiB of values) and its table.
pub const BULK_LEN_MAX: usize = 24 << 20;
/// Largest key, bytes.
pub const KEY_LEN_MAX: usize = 512;
/// Largest value, bytes.
pub const VALUE_LEN_MAX: usize = 4 << 20;
/// Most records in one part.
pub const PART_RECORDS_MAX: usize = 16_384;
/// Most bytes of values in one group (and so in one part).
pub const GROUP_BYTES_MAX: usize = 16 << 20;
/// Buckets of the set-hash of a shard; a key's bucket is [`bucket_of`].
pub const BUCKETS: usize = 1024;
/// Most shards of a volume: one byte of a key chooses among them.
pub const SHARDS_MAX: u16 = 256;
/// Version of this contract; a node refuses others with [`NodeError::UnknownFormat`].
pub const WIRE_FORMAT: u16 = 1;

/// A key: opaque bytes, compared as bytes, 1..=[`KEY_LEN_MAX`] long.
pub type Key = Vec<u8>;
/// Keys of one question, asked of several banks: clones share them.
pub type Keys = Arc<[Key]>;

/// A position in a shard's chain and the version of a record: who wrote it, in which group.
/// Compared as a pair; `seq` grows by one per group and is never reset.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Encode,
    Decode,
    Serialize,
    Deserialize,
)]
pub struct Version {
    /// Grows with every mount that may write.
    pub epoch: u64,
    /// Number of the group.
    pub seq: u64,
}

impl Version {
    /// Before everything.
    pub const ZERO: Version = Version { epoch: 0, seq: 0 };
    /// A version from its parts.
    #[must_use]
    pub const fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch, seq }
    }
}
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}.{}", self.epoch, self.seq)
    }
}
impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the three replicas of a volume.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize,
)]
pub enum BankId {
    /// First bank.
    A,
    /// Second bank.
    B,
    /// Third bank.
    C,
}
impl BankId {
    /// All three, in order.
    pub const ALL: [BankId; 3] = [BankId::A, BankId::B, BankId::C];
    /// 0, 1 or 2.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}
impl fmt::Display for BankId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["A", "B", "C"][self.index()])
    }
}
impl std::str::FromStr for BankId {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "A" | "a" => Ok(Self::A),
            "B" | "b" => Ok(Self::B),
            "C" | "c" => Ok(Self::C),
            _ => Err(format!("no bank {s:?}: use A, B or C")),
        }
    }
}

/// Three of something, one per bank; indexing by [`BankId`] cannot miss.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode, Serialize, Deserialize)]
pub struct PerBank<T>(pub [T; 3]);
impl<T> std::ops::Index<BankId> for PerBank<T> {
    type Output = T;
    fn index(&self, b: BankId) -> &T {
        &self.0[b.index()]
    }
}
impl<T> std::ops::IndexMut<BankId> for PerBank<T> {
    fn index_mut(&mut self, b: BankId) -> &mut T {
        &mut self.0[b.index()]
    }
}
impl<T> PerBank<T> {
    /// Builds one value per bank.
    pub fn from_fn(mut f: impl FnMut(BankId) -> T) -> Self {
        Self(BankId::ALL.map(&mut f))
    }
    /// Pairs of bank and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (BankId, &T)> {
        BankId::ALL.into_iter().zip(self.0.iter())
    }
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
        pub struct $name(pub [u8; 16]);
        impl $name {
            /// All zero: "none".
            pub const ZERO: $name = $name([0; 16]);
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                let bad = || format!("{s:?} is not 32 hexadecimal digits");
                if s.len() != 32 || !s.is_ascii() {
                    return Err(bad());
                }
                let mut out = [0u8; 16];
                for (i, o) in out.iter_mut().enumerate() {
                    *o = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
                }
                Ok(Self(out))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
id16!(
    /// Identity of one node's directory: random, made with it, renewed when it is refilled.
    StoreId
);
id16!(
    /// Identity of a volume: random, made by `tercet init`.
    VolumeId
);
id16!(
    /// First 16 bytes of BLAKE3 over key, version, kind and value: see [`digest`].
    Digest
);

/// Digest of a record: BLAKE3 over (value, key, trailer), truncated to 16 bytes; the trailer is 32
/// bytes: format tag, key length, kind, version. The key and version are inside so that a record
/// that was moved, renamed or re-dated does not verify. The value comes first because BLAKE3 works
/// in aligned chunks of 1 KiB, many at once: behind a head of odd length, a block of the usual sizes
/// takes twice as long. `value` is `None` for a tombstone.
#[must_use]
pub fn digest(key: &[u8], version: Version, value: Option<&[u8]>) -> Digest {
    let mut trailer = [0u8; 32];
    trailer[..8].copy_from_slice(b"tercet-1");
    trailer[8..12].copy_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
    trailer[12] = u8::from(value.is_some());
    trailer[16..24].copy_from_slice(&version.epoch.to_le_bytes());
    trailer[24..32].copy_from_slice(&version.seq.to_le_bytes());
    let mut h = blake3::Hasher::new();
    h.update(value.unwrap_or_default()).update(key).update(&trailer);
    let mut out = [0u8; 16];
    out.copy_from_slice(&h.finalize().as_bytes()[..16]);
    Digest(out)
}

/// What one live record adds (wrapping) to the set-hash of its bucket.
#[must_use]
pub fn set_hash_term(key: &[u8], version: Version, digest: Digest) -> u128 {
    let mut h = blake3::Hasher::new();
    h.update(&version.epoch.to_le_bytes()).update(&version.seq.to_le_bytes());
    h.update(&digest.0).update(key);
    let mut out = [0u8; 16];
    out.copy_from_slice(&h.finalize().as_bytes()[..16]);
    u128::from_le_bytes(out)
}

/// Bucket of a key, `0..BUCKETS`: CRC32C of the key, so that neighbours spread.
#[must_use]
pub fn bucket_of(key: &[u8]) -> u16 {
    (crc32c::crc32c(key) as usize % BUCKETS) as u16
}

/// What a store is to its shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// New directory, belongs to no volume.
    Blank,
    /// Being filled in the place of a lost store: acks nothing, votes on nothing.
    Filling,
    /// Named in the configuration, may vote.
    Voter,
}

/// Which three stores are the voters of a shard; `None` = none yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode, Serialize, Deserialize)]
pub struct Configuration {
    /// Grows by one with each change; 1 is mkfs; 0 = none yet.
    pub number: u64,
    /// The store of each bank.
    pub stores: PerBank<Option<StoreId>>,
}

/// The highest fence a node promised to obey.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode, Serialize, Deserialize)]
pub struct Promise {
    /// Requests of lower epochs are refused.
    pub epoch: u64,
    /// Distinguishes two openers that chose the same epoch.
    pub nonce: u64,
    /// Host, process and mountpoint of the opener, for people.
    pub holder: String,
    /// The holder unmounted cleanly.
    pub released: bool,
}

/// An opening entry: where the epochs before `epoch` end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct OpeningMark {
    /// The epoch that was opened.
    pub epoch: u64,
    /// Parts of lower epochs above this are void, in all shards.
    pub cut: Version,
}

/// Every message begins with this: who speaks, and to which store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Envelope {
    /// [`WIRE_FORMAT`].
    pub format: u16,
    /// Volume; ZERO only in `status` and in `assign` to a blank store.
    pub volume: VolumeId,
    /// The store this is meant for; ZERO only in `status`.
    pub store: StoreId,
    /// Epoch of the sender; 0 = an observer that only reads applied records.
    pub epoch: u64,
    /// Nonce of the sender's fence.
    pub nonce: u64,
}

/// A record's head: all but its value. In bulk frames the values follow in the same order.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct RecordHead {
    /// The key.
    pub key: Key,
    /// Version it was written with.
    pub version: Version,
    /// See [`digest`].
    pub digest: Digest,
    /// Length of the value in bytes; `None` = tombstone.
    pub len: Option<u32>,
}

/// What a node holds under a key, as told to a voter.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Found {
    /// Nothing, not even a tombstone.
    Absent,
    /// A record or a tombstone; with `read`, its value stands in the bulk.
    Record {
        /// Its version.
        version: Version,
        /// Its digest as the index knows it (the reader verifies the value against it).
        digest: Digest,
        /// Value length, `None` for a tombstone.
        len: Option<u32>,
    },
    /// Something is there and it is not whole: no vote, and never "absent".
    Damaged {
        /// What is wrong, for people.
        what: String,
    },
}

/// Why records are installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum InstallKind {
    /// A voted record replaces an older or damaged one on an up-to-date voter (rule 11).
    Repair,
    /// Part of a catch-up or refill of a store that is not contiguous (rules 7, 8).
    CatchUp,
}

/// Messages to a node. The reply type stands with each.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Request {
    /// Who and where are you? -> [`Reply::Status`]. Allowed to anyone with the token.
    Status,
    /// Join a volume (mkfs: role `Voter` on a blank store, keeps its store id) or begin anew
    /// (`wipe`: all content is dropped, a **new store id** is made, role `Filling`). Durable before
    /// the reply -> [`Reply::Status`]. Refused if bank or shard differ from the node's flags, or if
    /// the store is not blank and `wipe` is false.
    Assign {
        /// Volume to belong to.
        volume: VolumeId,
        /// Must equal the node's.
        bank: BankId,
        /// Must equal the node's.
        shard: u16,
        /// Shards of the volume.
        shards: u16,
        /// `Voter` (mkfs) or `Filling`.
        role: Role,
        /// The configuration to keep.
        configuration: Configuration,
        /// Drop what is there.
        wipe: bool,
    },
    /// Promise to refuse lower epochs; fsynced before the reply. Refused with
    /// [`NodeError::Fenced`] if the node's promise is higher, or equal with another nonce.
    /// -> [`Reply::Status`].
    Fence {
        /// New epoch.
        epoch: u64,
        /// Random.
        nonce: u64,
        /// Who opens.
        holder: String,
    },
    /// Attach to the (fenced) epoch: every pending part above `applied` that is not in `chain` is
    /// void; detached tails are dropped. Durable before the reply -> [`Reply::Position`].
    Attach {
        /// Versions of the parts above the node's `applied` that stay, ascending. May name parts
        /// the node does not have.
        chain: Vec<Version>,
        /// Where the epochs before the sender's end.
        cut: Version,
    },
    /// Bulk: `lens.len()` encoded [parts](crate::part), concatenated. A part whose predecessor is
    /// missing is stored as detached tail and not acked. Duplicates are fine. The reply is sent
    /// when what it says is durable -> [`Reply::Position`].
    Append {
        /// Length of each part in the bulk.
        lens: Vec<u32>,
        /// Committed through here (for the attached epoch).
        watermark: Version,
    },
    /// Values and heads; bulk of the reply: the values found, in order of the keys, as they lie on
    /// disk: the reader checks them against their digests -> [`Reply::Found`]. The node applies through `through` first (it must hold it
    /// contiguously), else refuses with [`NodeError::NotThere`].
    Read {
        /// Keys, at most 4,096.
        keys: Keys,
        /// Position of the shard the answer must include; ignored for observers.
        through: Version,
    },
    /// Like `Read` without values (the node does not touch the disk).
    Digests {
        /// Keys.
        keys: Keys,
        /// As in `Read`.
        through: Version,
    },
    /// Live records with `start <= key < end`, ascending -> [`Reply::Records`]. With `values`, values
    /// are the bulk; a damaged value is sent as an empty value with its true `len` and is listed in
    /// `damaged`. Stops at `limit` records or about 4 MiB and then gives `next`.
    Scan {
        /// First key.
        start: Key,
        /// End, exclusive; empty = no end.
        end: Key,
        /// At most so many records.
        limit: u32,
        /// Send values too.
        values: bool,
        /// As in `Read`.
        through: Version,
    },
    /// Set-hash of each of the [`BUCKETS`] buckets over live applied records
    /// -> [`Reply::Hashes`].
    Hashes {
        /// As in `Read`.
        through: Version,
    },
    /// Heads of all applied records, tombstones included, of one bucket with key > `after`
    /// -> [`Reply::Records`] without values.
    Bucket {
        /// Which.
        bucket: u16,
        /// Cursor, exclusive; empty = from the start.
        after: Key,
        /// At most so many.
        limit: u32,
        /// As in `Read`.
        through: Version,
    },
    /// Pending parts (above the node's `applied`) with version > `from`, whole, as bulk
    /// -> [`Reply::Tail`]. At most about 16 MiB, then `more`.
    Tail {
        /// Exclusive.
        from: Version,
    },
    /// Newest applied record of each key with version > `since` and key > `after`, tombstones
    /// included -> [`Reply::Records`]; with `values` these are verified and come as bulk.
    Delta {
        /// Exclusive.
        since: Version,
        /// Key cursor, exclusive; empty = from the start.
        after: Key,
        /// Stop after about so many bytes of values, sent or not.
        limit_bytes: u32,
        /// Send the values too.
        values: bool,
        /// As in `Read`.
        through: Version,
    },
    /// Bulk: the values of `records`, in order. Durable before the reply -> [`Reply::Installed`].
    /// The node verifies every digest. `Repair`: refused if `as_of` is below the floor; a record is
    /// taken if newer than the node's own, or if its own, re-read now, is damaged or above its
    /// `applied`. `CatchUp`: only while the store is behind or filling; taken if newer.
    Install {
        /// Heads.
        records: Vec<RecordHead>,
        /// Position at which the sender decided.
        as_of: Version,
        /// Why.
        kind: InstallKind,
    },
    /// Forget a foreign record: no tombstone stays. Done only if its version is still `seen`
    /// -> [`Reply::Installed`].
    Remove {
        /// The key.
        key: Key,
        /// Its version when two others were seen to hold nothing.
        seen: Version,
        /// As in `Install`.
        as_of: Version,
    },
    /// Catch-up is complete: all settled records with versions up to `at` are installed. In one
    /// durable step the position becomes `at`, extended by the contiguous detached tail, which must
    /// reach `reach` (the highest version installed), and the node applies through `reach`
    /// -> [`Reply::Position`]. Refused (`NotThere`) when the tail does not reach.
    Join {
        /// New position.
        at: Version,
        /// Highest version installed.
        reach: Version,
    },
    /// Remember how far a copy came, so that it goes on after a restart -> [`Reply::Done`]. Ignored
    /// when the store has applied all that the cursor is about: a late copy of the message.
    Cursor(Cursor),
    /// Keep a new configuration; fsynced before the reply -> [`Reply::Done`]. A lower number is
    /// refused.
    Configure {
        /// What to keep.
        configuration: Configuration,
    },
    /// To a filled, joined store: you are a voter now -> [`Reply::Status`].
    Admit {
        /// The configuration, held by both other voters by now.
        configuration: Configuration,
    },
    /// I am alive; committed through `watermark` -> [`Reply::Position`].
    Beat {
        /// Watermark of the attached epoch.
        watermark: Version,
        /// The last beat: the holder unmounts cleanly. Durable.
        release: bool,
    },
    /// Re-read records from disk and check their digests, key > `after`, about `budget_bytes`
    /// -> [`Reply::Verified`].
    Verify {
        /// Cursor, exclusive.
        after: Key,
        /// Bytes to read, about.
        budget_bytes: u32,
    },
    /// Re-read one of the node's own files: first the state, then each segment of the log with its
    /// sidecar; what is damaged is written anew from what the process knows, if the sender holds the
    /// volume -> [`Reply::FilesVerified`].
    VerifyFiles {
        /// 0 = from the start.
        from: u32,
    },
    /// How much a `Delta` of all pages would bring -> [`Reply::Missed`].
    Missed {
        /// As in `Delta`.
        since: Version,
        /// As in `Delta`.
        after: Key,
        /// As in `Read`.
        through: Version,
    },
    /// Break something on purpose: refused unless the node runs with `--allow-faults`
    /// -> [`Reply::Done`].
    Inject(Fault),
}

/// What can be broken on purpose.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Replace the value under a key, leaving version and digest as they were (a silent
    /// corruption); a key that is not there is created with `version` and a right digest (a foreign
    /// record).
    Put {
        /// Key.
        key: Key,
        /// New value.
        value: Vec<u8>,
        /// For a key that is not there; default e1.1.
        version: Option<Version>,
    },
    /// Flip one bit of the stored value, on disk.
    Corrupt {
        /// Key.
        key: Key,
    },
    /// Forget a record (a lost write).
    Drop {
        /// Key.
        key: Key,
    },
    /// Wait before every reply, milliseconds; 0 ends it.
    Delay {
        /// How long.
        millis: u32,
    },
    /// Answer every message but `status` and this with an error; false ends it.
    Refuse {
        /// On or off.
        on: bool,
    },
}

/// Positions, after what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct Position {
    /// Contiguous and durable through here.
    pub position: Version,
    /// Watermark durable in this node's own log.
    pub applied: Version,
    /// Highest position ever acked.
    pub high: Version,
    /// First and last part of the detached tail.
    pub detached: Option<(Version, Version)>,
}

/// How full a node is, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode, Serialize, Deserialize)]
pub struct Space {
    /// Size of the node's disk (or its `--capacity`).
    pub capacity_bytes: u64,
    /// Free for new data.
    pub free_bytes: u64,
    /// Keys and values of live records.
    pub live_bytes: u64,
    /// Size of the log on disk.
    pub log_bytes: u64,
    /// Live records.
    pub records: u64,
    /// Tombstones kept.
    pub tombstones: u64,
}

/// How far a copy of settled records to a store came (rules 7 and 8): a claim about what the store
/// holds, true for good once it is true (docs/adr/0016-interrupted-copies.md).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct Cursor {
    /// Under every key: the newest record settled through here, or a newer one. Zero: nothing but
    /// what copies brought.
    pub since: Version,
    /// Under the keys up to `after`: the newest record settled through here, or a newer one.
    pub good: Version,
    /// Inclusive; empty = no key yet.
    pub after: Key,
}

/// All that a node says of itself.
#[derive(Clone, PartialEq, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct Status {
    /// `None` while blank.
    pub volume: Option<VolumeId>,
    /// The bank it was started for.
    pub bank: BankId,
    /// The shard it was started for.
    pub shard: u16,
    /// Shards of the volume (0 while blank).
    pub shards: u16,
    /// This directory.
    pub store: StoreId,
    /// Blank, filling, voter.
    pub role: Role,
    /// The configuration it keeps.
    pub configuration: Configuration,
    /// Whom it obeys.
    pub promise: Promise,
    /// Beats of the holder since the node started.
    pub beats: u64,
    /// Epoch it is attached to; 0 = none since it started.
    pub attached: u64,
    /// Positions.
    pub position: Position,
    /// Watermark it knows (in memory), at or above `applied`.
    pub watermark: Version,
    /// Tombstone floor.
    pub floor: Version,
    /// `high` of each bank as the last writer knew it.
    pub marks: PerBank<Version>,
    /// Opening entries in the log (pending ones too), ascending by epoch.
    pub openings: Vec<OpeningMark>,
    /// A damaged entry lies behind `position`: what is lost may reach through this version
    /// (`maybe_through`). Not the same as absent.
    pub damaged_through: Option<Version>,
    /// Why the node does not vote (failed disk, damaged state), for people.
    pub failed: Option<String>,
    /// A copy to this store under way, or broken off.
    pub cursor: Option<Cursor>,
    /// How full.
    pub space: Space,
    /// Records that reads and scrubs found damaged and that were not replaced since, at most 4,096.
    pub damaged_records: u64,
    /// Faults injected are possible (`--allow-faults`).
    pub allow_faults: bool,
    /// Seconds since the node started.
    pub uptime_s: u64,
    /// Version of the program.
    pub program: String,
}

/// Sum, count and newest version of one bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct BucketHash {
    /// Wrapping sum of [`set_hash_term`] over live applied records.
    pub sum: u128,
    /// How many.
    pub count: u64,
    /// Highest version ever applied here, tombstones included.
    pub high: Version,
}

/// Answers of a node.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub enum Reply {
    /// To `status`, `assign`, `fence`, `admit`.
    Status(Box<Status>),
    /// To `attach`, `append`, `join`, `beat`.
    Position(Position),
    /// To `read`, `digests`.
    Found {
        /// What the node had applied when it answered.
        applied: Version,
        /// One per key.
        items: Vec<Found>,
    },
    /// To `scan`, `bucket`, `delta`.
    Records {
        /// What the node had applied when it answered.
        applied: Version,
        /// Heads; values as bulk where the request says so.
        records: Vec<RecordHead>,
        /// Keys whose value could not be read whole.
        damaged: Vec<Key>,
        /// Go on after this key (`scan`: from just behind it); `None` = that was all.
        next: Option<Key>,
    },
    /// To `hashes`.
    Hashes {
        /// What the node had applied when it answered.
        applied: Version,
        /// [`BUCKETS`] of them.
        buckets: Vec<BucketHash>,
    },
    /// To `tail`; the parts are the bulk.
    Tail {
        /// Length of each part in the bulk.
        lens: Vec<u32>,
        /// Ask again from the last one.
        more: bool,
        /// As in [`Status::damaged_through`].
        damaged_through: Option<Version>,
    },
    /// To `install`, `remove`.
    Installed {
        /// How many were taken; the others were not newer.
        taken: u32,
    },
    /// To `verify`.
    Verified {
        /// Keys that do not verify, and why.
        bad: Vec<(Key, String)>,
        /// Go on after this key; `None` = through.
        next: Option<Key>,
        /// Records read.
        records: u64,
        /// Bytes read.
        bytes: u64,
    },
    /// To `verify_files`.
    FilesVerified {
        /// What is damaged, for people; it is being written anew.
        bad: Vec<String>,
        /// Bytes read.
        bytes: u64,
        /// Go on from here; `None` = through.
        next: Option<u32>,
    },
    /// To `missed`.
    Missed {
        /// Records, tombstones included.
        records: u64,
        /// Bytes of their values.
        bytes: u64,
    },
    /// To the rest.
    Done,
}

/// Free bytes beside which no write of ours is too large: whoever is refused there is not refused by the
/// filesystem's own count.
const ROOM_FOR_ANY_WRITE: u64 = 256 << 20;

fn disk_full(free_bytes: u64) -> String {
    if free_bytes < ROOM_FOR_ANY_WRITE {
        return format!("disk full: {free_bytes} bytes free");
    }
    format!(
        "disk full: it takes no more, though its filesystem counts {free_bytes} bytes free; look at the thin \
         pool below it, or at a quota"
    )
}

/// Refusals. Each says what the caller can do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Encode, Decode)]
pub enum NodeError {
    /// No or wrong token.
    #[error(
        "the volume's token is missing or wrong: give the node and the client the same --token-file"
    )]
    Unauthorized,
    /// Belongs to another volume.
    #[error("this store belongs to volume {have}")]
    WrongVolume {
        /// Its volume.
        have: VolumeId,
    },
    /// Another store answers here.
    #[error("the store here is {have}, not the one this message is meant for")]
    WrongStore {
        /// Its id.
        have: StoreId,
    },
    /// Bank or shard differ.
    #[error("this node serves bank {bank} shard {shard}")]
    WrongPlace {
        /// Its bank.
        bank: BankId,
        /// Its shard.
        shard: u16,
    },
    /// A newer mount holds the volume.
    #[error("epoch {} is held by {}", promise.epoch, promise.holder)]
    Fenced {
        /// Whom the node obeys.
        promise: Promise,
    },
    /// Restarted or fenced since: attach first.
    #[error("not attached to this epoch (attached to {attached})")]
    NotAttached {
        /// Its epoch, 0 = none.
        attached: u64,
    },
    /// Not contiguous through what was asked.
    #[error("stands at {position}")]
    NotThere {
        /// Where it stands.
        position: Version,
    },
    /// Blank or filling: cannot do that.
    #[error("this store is {role:?}")]
    WrongRole {
        /// Its role.
        role: Role,
    },
    /// The node's own files are damaged or its disk failed; it does not vote.
    #[error("the node does not vote: {what}")]
    Failed {
        /// Why.
        what: String,
    },
    /// Not enough space.
    #[error("{}", disk_full(*free_bytes))]
    Full {
        /// Left.
        free_bytes: u64,
    },
    /// The repair was decided before what the node forgot.
    #[error("as_of {as_of} is below the floor {floor}")]
    BelowFloor {
        /// From the request.
        as_of: Version,
        /// The node's.
        floor: Version,
    },
    /// Malformed or over a limit.
    #[error("bad request: {what}")]
    Bad {
        /// What.
        what: String,
    },
    /// A wire format this node does not know.
    #[error("wire format {format} is not known here (this node speaks {WIRE_FORMAT})")]
    UnknownFormat {
        /// From the request.
        format: u16,
    },
    /// Faults may not be injected, or one is active.
    #[error("{what}")]
    Fault {
        /// What.
        what: String,
    },
}

/// Path of a message: `/v1/<name>`.
#[must_use]
pub fn path_of(r: &Request) -> &'static str {
    match r {
        Request::Status => "/v1/status",
        Request::Assign { .. } => "/v1/assign",
        Request::Fence { .. } => "/v1/fence",
        Request::Attach { .. } => "/v1/attach",
        Request::Append { .. } => "/v1/append",
        Request::Read { .. } => "/v1/read",
        Request::Digests { .. } => "/v1/digests",
        Request::Scan { .. } => "/v1/scan",
        Request::Hashes { .. } => "/v1/hashes",
        Request::Bucket { .. } => "/v1/bucket",
        Request::Tail { .. } => "/v1/tail",
        Request::Delta { .. } => "/v1/delta",
        Request::Install { .. } => "/v1/install",
        Request::Remove { .. } => "/v1/remove",
        Request::Join { .. } => "/v1/join",
        Request::Cursor(_) => "/v1/cursor",
        Request::Configure { .. } => "/v1/configure",
        Request::Admit { .. } => "/v1/admit",
        Request::Beat { .. } => "/v1/beat",
        Request::Verify { .. } => "/v1/verify",
        Request::VerifyFiles { .. } => "/v1/verify_files",
        Request::Missed { .. } => "/v1/missed",
        Request::Inject(_) => "/v1/inject",
    }
}
