//! Rules of the protocol, broken on purpose, to see that the simulation notices. All are broken from
//! outside, between a mount and its nodes or below a node: the product has no hook for it.

use bytes::{Bytes, BytesMut};
use storenode::part::{self, Part};
use storenode::service::Service;
use storenode::wire::{
    BankId, BucketHash, Configuration, Envelope, InstallKind, Reply, Request, Version,
};

/// A broken rule. The traps are those of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A part is acked when it arrives and stored later: one durable copy is enough. (traps 4 and 12)
    AckedBeforeStored,
    /// A flush answers Ok and does nothing. (trap 12)
    FlushLies,
    /// A flush that failed is tried again, and that is believed. (trap 13)
    FlushRetried,
    /// Promise, role and configuration are not durable when they are answered. (trap 8)
    StateNotDurable,
    /// Nodes obey a writer that was fenced. (trap 8)
    OldWriterObeyed,
    /// Damage is told as if there had been nothing. (trap 5)
    DamageIsAbsence,
    /// A node states the end of its log, gaps or not. (trap 6)
    GapsIgnored,
    /// A new epoch keeps every pending part, of the chain or not. (traps 1 and 7)
    NothingIsVoid,
    /// What a node holds is committed as soon as it has it. (trap 7)
    CommittedByOne,
    /// The volume is served before the opening entry is durable. (trap 1)
    EntryNotAwaited,
    /// The opening entry is written before what it promises is settled. (trap 2)
    CutBeforeSettling,
    /// Reads are not bound to a position. (trap 28)
    ReadsUnbound,
    /// Tombstones are dropped as soon as they are applied somewhere. (trap 22)
    TombstonesDroppedEarly,
    /// Catch-up leaves tombstones out. (trap 15)
    TombstonesNotCopied,
    /// A replica joins without the records it missed. (trap 14)
    JoinedEmpty,
    /// A new configuration is kept by one of the two remaining voters only. (trap 20)
    ConfiguredOnOne,
    /// The opener does not see pending parts. (traps 1 and 5)
    TailNotRead,
    /// Refresh finds all replicas alike. (trap 29)
    DifferencesUnseen,
    /// Scrub finds nothing damaged. (trap 25)
    ScrubBlind,
    /// An emptied store keeps its id, its role, and its word of what it acked. (traps 19 and 21)
    EmptyStoreVotes,
    /// Messages are not bound to the store they are meant for. (traps 17 and 21)
    AnyStoreWillDo,
    /// A repair is taken whenever it comes, whatever became of the record since. (trap 23)
    LateRepair,
    /// Nobody says that a store is below the floor. (docs/adr/0019)
    StruckVotes,
    /// What was copied counts for more than was settled when the copy began. (docs/adr/0016)
    CopiedIsNewer,
    /// A copy that was interrupted goes on behind what it had not copied. (docs/adr/0016)
    CopiedIsMore,
}

impl Broken {
    /// Those that the simulation notices.
    pub const ALL: [Broken; 23] = [
        Broken::AckedBeforeStored,
        Broken::FlushLies,
        Broken::StateNotDurable,
        Broken::OldWriterObeyed,
        Broken::GapsIgnored,
        Broken::NothingIsVoid,
        Broken::CommittedByOne,
        Broken::CutBeforeSettling,
        Broken::ReadsUnbound,
        Broken::TombstonesDroppedEarly,
        Broken::TombstonesNotCopied,
        Broken::JoinedEmpty,
        Broken::ConfiguredOnOne,
        Broken::TailNotRead,
        Broken::DifferencesUnseen,
        Broken::ScrubBlind,
        Broken::FlushRetried,
        Broken::DamageIsAbsence,
        Broken::EntryNotAwaited,
        Broken::EmptyStoreVotes,
        Broken::CopiedIsMore,
        Broken::LateRepair,
        Broken::StruckVotes,
    ];

    /// Those that thousands of worlds did not notice: the detached tail makes up for the first; nothing
    /// leads a message to another store, as the second would need.
    pub const UNNOTICED: [Broken; 2] = [Broken::CopiedIsNewer, Broken::AnyStoreWillDo];
}

/// What the network makes of a request under a broken rule.
pub(crate) enum Bent {
    /// It goes on, changed or not.
    Passed(Envelope, Request, Bytes),
    /// It is answered in the node's place.
    Answered(Reply),
}

fn parts(lens: &[u32], bulk: &Bytes) -> Vec<Part> {
    let mut at = 0;
    let mut out = Vec::new();
    for len in lens {
        let end = at + *len as usize;
        out.extend(bulk.get(at..end).and_then(|_| part::decode(bulk.slice(at..end)).ok()));
        at = end;
    }
    out
}

/// An answer that claims the last of these parts.
fn claim(service: &Service, parts: &[Part]) -> Reply {
    let mut p = service.status().position;
    p.position = parts.last().map_or(p.position, |x| x.head.version.max(p.position));
    p.high = p.high.max(p.position);
    Reply::Position(p)
}

/// Bends a request on its way to a node. The second: it reaches the node so much later, milliseconds, as
/// [`coming_late`] has it.
pub(crate) fn bend(
    rule: Broken,
    (bank, _): (BankId, u16),
    service: &Service,
    mut e: Envelope,
    request: Request,
    bulk: Bytes,
) -> (Bent, Option<u64>) {
    let status = service.status();
    let bent = match (rule, request) {
        (Broken::AckedBeforeStored, Request::Append { lens, .. }) if status.attached == e.epoch => {
            return (Bent::Answered(claim(service, &parts(&lens, &bulk))), Some(300));
        }
        (Broken::OldWriterObeyed, request)
            if e.epoch < status.promise.epoch && !matches!(request, Request::Fence { .. }) =>
        {
            (e.epoch, e.nonce) = (status.promise.epoch, status.promise.nonce);
            Bent::Passed(e, request, bulk)
        }
        (Broken::NothingIsVoid, Request::Attach { cut, .. }) => {
            let tail = service.handle(e, Request::Tail { from: Version::ZERO }, Bytes::new());
            let mut chain = Vec::new();
            if let Ok((Reply::Tail { .. }, pieces)) = tail {
                let heads = pieces.into_iter().filter_map(|b| part::decode(b).ok());
                chain.extend(heads.map(|p| p.head.version));
            }
            Bent::Passed(e, Request::Attach { chain, cut }, bulk)
        }
        (Broken::CommittedByOne, Request::Append { lens, watermark }) => {
            let newest = parts(&lens, &bulk).last().map(|p| p.head.version);
            let watermark = newest.unwrap_or_default().max(watermark);
            Bent::Passed(e, Request::Append { lens, watermark }, bulk)
        }
        (Broken::EntryNotAwaited, Request::Append { lens, watermark }) => {
            let parts = parts(&lens, &bulk);
            if parts.iter().any(|p| p.head.cut.is_some()) && parts.len() == 1 {
                return (Bent::Answered(claim(service, &parts)), Some(2_000));
            }
            Bent::Passed(e, Request::Append { lens, watermark }, bulk)
        }
        // As if the entry were no position: reads that are bound to it would make up for it.
        (Broken::EntryNotAwaited, Request::Read { keys, through }) => {
            let through = through.min(status.position.position);
            Bent::Passed(e, Request::Read { keys, through }, bulk)
        }
        (Broken::EntryNotAwaited, Request::Digests { keys, through }) => {
            let through = through.min(status.position.position);
            Bent::Passed(e, Request::Digests { keys, through }, bulk)
        }
        (Broken::EntryNotAwaited, Request::Scan { start, end, limit, values, through }) => {
            let through = through.min(status.position.position);
            Bent::Passed(e, Request::Scan { start, end, limit, values, through }, bulk)
        }
        (Broken::CutBeforeSettling, Request::Append { lens, watermark }) => {
            let parts = parts(&lens, &bulk);
            let old = parts.iter().all(|p| p.head.version.epoch < e.epoch);
            if old && !parts.is_empty() {
                return (Bent::Answered(claim(service, &parts)), Some(400));
            }
            Bent::Passed(e, Request::Append { lens, watermark }, bulk)
        }
        (Broken::ReadsUnbound, Request::Read { keys, .. }) => {
            Bent::Passed(e, Request::Read { keys, through: Version::ZERO }, bulk)
        }
        (Broken::ReadsUnbound, Request::Digests { keys, .. }) => {
            Bent::Passed(e, Request::Digests { keys, through: Version::ZERO }, bulk)
        }
        (Broken::ReadsUnbound, Request::Scan { start, end, limit, values, .. }) => {
            let through = Version::ZERO;
            Bent::Passed(e, Request::Scan { start, end, limit, values, through }, bulk)
        }
        (Broken::TombstonesDroppedEarly, Request::Append { lens, watermark }) => {
            let mut all = BytesMut::new();
            let mut new_lens = Vec::new();
            for p in parts(&lens, &bulk) {
                let mut head = p.head.clone();
                head.floor = head.floor.max(head.predecessor);
                let value = |at: u32, n: u32| p.bytes.slice(at as usize..(at + n) as usize);
                let records: Vec<_> = p
                    .records
                    .iter()
                    .map(|r| (r.key.clone(), r.value.map(|(at, n)| value(at, n))))
                    .collect();
                let bytes = part::encode(&head, &records);
                new_lens.push(bytes.len() as u32);
                all.extend_from_slice(&bytes);
            }
            Bent::Passed(e, Request::Append { lens: new_lens, watermark }, all.freeze())
        }
        (
            Broken::TombstonesNotCopied,
            Request::Install { mut records, as_of, kind: InstallKind::CatchUp },
        ) => {
            records.retain(|r| r.len.is_some());
            Bent::Passed(e, Request::Install { records, as_of, kind: InstallKind::CatchUp }, bulk)
        }
        (Broken::LateRepair, Request::Install { records, kind: InstallKind::Repair, .. }) => {
            let taken = records.len() as u32;
            return (Bent::Answered(Reply::Installed { taken }), Some(1_500));
        }
        (Broken::JoinedEmpty, Request::Install { records, kind: InstallKind::CatchUp, .. }) => {
            Bent::Answered(Reply::Installed { taken: records.len() as u32 })
        }
        (Broken::AnyStoreWillDo | Broken::EmptyStoreVotes, request)
            if status.volume == Some(e.volume) =>
        {
            e.store = status.store;
            Bent::Passed(e, request, bulk)
        }
        (Broken::TailNotRead, Request::Tail { .. }) => {
            Bent::Answered(Reply::Tail { lens: Vec::new(), more: false, damaged_through: None })
        }
        (Broken::ConfiguredOnOne, Request::Configure { .. }) if bank == BankId::C => {
            Bent::Answered(Reply::Done)
        }
        (_, request) => Bent::Passed(e, request, bulk),
    };
    (bent, None)
}

/// A message that reaches its node late.
pub(crate) fn coming_late(rule: Broken, e: &Envelope, mut request: Request) -> Request {
    if let (Broken::LateRepair, Request::Install { as_of, .. }) = (rule, &mut request) {
        *as_of = Version::new(e.epoch, u64::MAX);
    }
    request
}

/// Bends an answer on its way back. `newest` remembers what this place was ever said to be.
pub(crate) fn bend_back(rule: Broken, reply: &mut Reply, newest: &mut Memory) {
    match (rule, reply) {
        (Broken::GapsIgnored, Reply::Position(p)) => {
            if let Some((_, last)) = p.detached {
                p.position = p.position.max(last);
            }
        }
        (Broken::DifferencesUnseen, Reply::Hashes { buckets, .. }) => {
            buckets.iter_mut().for_each(|b| *b = BucketHash::default());
        }
        (Broken::CopiedIsNewer, Reply::Status(s)) => {
            if let Some(c) = &mut s.cursor {
                c.good.seq += 2;
            }
        }
        (Broken::CopiedIsMore, Reply::Status(s)) => {
            if let Some(c) = &mut s.cursor {
                c.after = vec![0xff; 8];
            }
        }
        (Broken::StruckVotes, Reply::Status(s)) => s.floor = Version::ZERO,
        (Broken::ScrubBlind, Reply::Verified { bad, .. }) => bad.clear(),
        (Broken::DamageIsAbsence, Reply::Status(s)) => s.damaged_through = None,
        (Broken::DamageIsAbsence, Reply::Tail { damaged_through, .. }) => *damaged_through = None,
        (Broken::ConfiguredOnOne, Reply::Status(s)) => {
            // Whoever asks believes that it is kept.
            if newest.configuration.number < s.configuration.number {
                newest.configuration = s.configuration;
            }
            s.configuration = newest.configuration;
        }
        (Broken::EmptyStoreVotes, Reply::Status(s)) => {
            newest.high = newest.high.max(s.position.high);
            s.position.high = newest.high;
        }
        _ => {}
    }
}

/// What one node once said, or, of configurations, its shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    high: Version,
    configuration: Configuration,
}
