//! The traps of the protocol, section B, one by one, on the deciding functions alone.

use storenode::part::PartHead;
use storenode::wire::{BankId, OpeningMark, PerBank, StoreId, Version};
use voter::opening::{ChainView, Fenced, Refusal, ShardTails, decide};

const fn v(epoch: u64, seq: u64) -> Version {
    Version::new(epoch, seq)
}

/// A part that touches these shards.
fn part(version: Version, predecessor: Version, shards: &[u16]) -> PartHead {
    PartHead { version, predecessor, shards: shards.to_vec(), ..PartHead::default() }
}

fn entry(version: Version, predecessor: Version, cut: Version) -> PartHead {
    PartHead { cut: Some(cut), ..part(version, predecessor, &[0, 1]) }
}

/// A voter whose settled log ends at `applied`, with this tail.
fn voter(applied: Version, tail: Vec<PartHead>) -> Option<Fenced> {
    let position = tail.last().map_or(applied, |p| p.version);
    let openings =
        tail.iter().filter_map(|p| Some(OpeningMark { epoch: p.version.epoch, cut: p.cut? }));
    Some(Fenced {
        store: StoreId::ZERO,
        position,
        applied,
        high: position,
        watermark: applied,
        floor: Version::ZERO,
        marks: PerBank::default(),
        openings: openings.collect(),
        damaged_through: None,
        tail,
    })
}

fn shard(voters: [Option<Fenced>; 3]) -> ShardTails {
    ShardTails { named: PerBank([true; 3]), fenced: PerBank(voters) }
}

const BASE: Version = v(1, 6);

/// Trap 1: what an opener dropped stays dropped, since its entry in another shard says so.
#[test]
fn a_discarded_group_does_not_come_back() {
    let mark = entry(v(2, 6), BASE, BASE);
    let s0 = shard([voter(BASE, vec![mark.clone()]), voter(BASE, vec![mark]), None]);
    let s1 = shard([voter(BASE, vec![part(v(1, 7), BASE, &[1])]), voter(BASE, vec![]), None]);
    let plan = decide(3, &[s0, s1]).unwrap();
    assert_eq!((plan.cut, plan.entry), (BASE, v(3, 6)));
    assert_eq!(plan.dropped, [v(1, 7)]);
    assert!(plan.shards[1].chain.is_empty());
    // The unfinished entry stays in its chain, as a no-op.
    assert_eq!(plan.shards[0].chain, [v(2, 6)]);
    assert_eq!(plan.shards[0].entry.predecessor, v(2, 6));
}

/// A group stays when every shard it names has its part on one fenced voter.
#[test]
fn whole_groups_roll_forward_and_torn_ones_end_the_walk() {
    let both = |at: u64| part(v(1, at), v(1, at - 1), &[0, 1]);
    let s0 = shard([voter(BASE, vec![both(7), both(8)]), voter(BASE, vec![both(7)]), None]);
    let s1 = shard([voter(BASE, vec![both(7)]), voter(BASE, vec![]), None]);
    let plan = decide(2, &[s0, s1]).unwrap();
    assert_eq!((plan.cut, plan.kept), (v(1, 7), 1));
    assert_eq!(plan.dropped, [v(1, 8)]);
    let step = plan.shards[1].steps[BankId::B].clone().unwrap();
    assert_eq!((step.attach, step.append, step.catch_up), (vec![v(1, 7)], vec![v(1, 7)], None));
    assert_eq!(plan.shards[0].steps[BankId::A].clone().unwrap().attach, [v(1, 7)]);
}

/// Trap 2 turned round: an entry that stands anywhere promises that its cut is everywhere.
#[test]
fn a_part_missing_below_a_cut_is_refused() {
    let s0 = shard([voter(BASE, vec![entry(v(2, 7), BASE, v(1, 7))]), voter(BASE, vec![]), None]);
    let seven = part(v(1, 7), BASE, &[1]);
    let one = |tail: Vec<PartHead>| shard([voter(BASE, tail), voter(BASE, vec![]), None]);
    let plan = decide(3, &[s0.clone(), one(vec![seven])]).unwrap();
    assert_eq!(plan.cut, v(1, 7));
    let mut torn = one(vec![]);
    torn.fenced[BankId::B].as_mut().unwrap().damaged_through = Some(v(1, 7));
    assert!(matches!(decide(3, &[s0, torn]), Err(Refusal::Damaged { shard: 1, .. })));
}

/// Trap 5: damaged is not absent, until the third voter says that it never had it.
#[test]
fn a_damaged_pending_part() {
    let mut damaged = voter(BASE, vec![]);
    damaged.as_mut().unwrap().damaged_through = Some(v(1, 7));
    let s = shard([damaged.clone(), voter(BASE, vec![]), None]);
    let Err(Refusal::Damaged { shard: 0, damaged: who, needed, .. }) = decide(2, &[s]) else {
        panic!("must refuse")
    };
    assert_eq!((who.as_str(), needed.as_str()), ("bank A", "bank C"));
    // The third has it: it stays.
    let s =
        shard([damaged.clone(), voter(BASE, vec![]), voter(BASE, vec![part(v(1, 7), BASE, &[0])])]);
    assert_eq!(decide(2, &[s]).unwrap().cut, v(1, 7));
    // The third never had it: it was on one at most.
    let s = shard([damaged.clone(), voter(BASE, vec![]), voter(BASE, vec![])]);
    assert_eq!(decide(2, &[s]).unwrap().cut, BASE);
    // Two are damaged: beyond the fault model, and still no guess.
    let s = shard([damaged.clone(), damaged, voter(BASE, vec![])]);
    assert!(matches!(decide(2, &[s]), Err(Refusal::Damaged { .. })));
}

/// A group that is torn in another shard was not acked, so damage to its part does not matter.
#[test]
fn damage_to_a_group_that_cannot_have_been_acked() {
    let mut damaged = voter(BASE, vec![]);
    damaged.as_mut().unwrap().damaged_through = Some(v(1, 7));
    let s0 = shard([voter(BASE, vec![part(v(1, 7), BASE, &[0, 1, 2])]), voter(BASE, vec![]), None]);
    let s1 = shard([damaged, voter(BASE, vec![]), None]);
    let s2 = shard([voter(BASE, vec![]), voter(BASE, vec![]), None]);
    assert_eq!(decide(2, &[s0, s1, s2]).unwrap().cut, BASE);
}

/// Trap 6: what stands behind a gap is not counted.
#[test]
fn a_gap_ends_a_log() {
    let mut gapped = voter(BASE, vec![part(v(1, 7), BASE, &[0]), part(v(1, 9), v(1, 8), &[0])]);
    gapped.as_mut().unwrap().position = v(1, 7);
    let s = shard([gapped, voter(BASE, vec![]), None]);
    assert_eq!(decide(2, &[s]).unwrap().cut, v(1, 7));
}

/// Trap 7: a pending part of an old epoch, below the watermark of a new one, is void.
#[test]
fn an_old_pending_part_is_not_settled_by_a_new_watermark() {
    let openings = [OpeningMark { epoch: 2, cut: BASE }];
    let view = ChainView { settled: v(2, 12), openings: &openings, parts: &[], end: v(2, 12) };
    let late = voter(BASE, vec![part(v(1, 7), BASE, &[0])]).unwrap();
    let step = view.step(&late);
    assert_eq!((step.attach, step.catch_up), (vec![], Some(BASE)));
    // What the epoch kept stays with the voter, though its peers have compacted it.
    let kept = voter(v(1, 5), vec![part(BASE, v(1, 5), &[0]), part(v(1, 7), BASE, &[0])]).unwrap();
    assert_eq!(view.step(&kept).attach, [BASE]);
}

/// A voter that was away for an epoch is not the source, however long its log is.
#[test]
fn the_longest_log_is_that_of_the_newest_epoch() {
    let old = (7..40).map(|s| part(v(1, s), v(1, s - 1), &[0])).collect();
    let opened = PartHead { shards: vec![0], ..entry(v(2, 6), BASE, BASE) };
    let new = vec![opened, part(v(2, 7), v(2, 6), &[0])];
    let plan = decide(3, &[shard([voter(BASE, old), voter(BASE, new), None])]).unwrap();
    assert_eq!((plan.cut, plan.shards[0].source), (v(2, 7), BankId::B));
    let step = plan.shards[0].steps[BankId::A].clone().unwrap();
    assert_eq!(step.append, [v(2, 6), v(2, 7)]);
    assert_eq!((step.attach, step.catch_up), (vec![v(2, 6), v(2, 7)], None));
}

/// One that is far behind catches up by state before it counts.
#[test]
fn a_voter_far_behind_catches_up() {
    let s = shard([
        voter(v(1, 90), vec![part(v(1, 91), v(1, 90), &[0])]),
        voter(v(1, 20), vec![]),
        None,
    ]);
    let plan = decide(2, &[s]).unwrap();
    let step = plan.shards[0].steps[BankId::B].clone().unwrap();
    assert_eq!((step.catch_up, step.append), (Some(v(1, 20)), vec![v(1, 91)]));
    assert_eq!(plan.shards[0].settle, [BankId::A, BankId::B]);
}

/// With two of three up to date, the one that is behind is left for later.
#[test]
fn the_two_nearest_are_settled() {
    let s = shard([voter(v(1, 20), vec![]), voter(v(1, 90), vec![]), voter(v(1, 90), vec![])]);
    let plan = decide(2, &[s]).unwrap();
    assert!(!plan.shards[0].settle.contains(&BankId::A));
    assert!(plan.shards[0].steps[BankId::A].as_ref().unwrap().catch_up.is_some());
}

/// A watermark may be above the last part of a shard that later groups did not touch.
#[test]
fn a_shard_that_later_groups_did_not_touch() {
    let mut quiet = voter(v(1, 10), vec![]);
    quiet.as_mut().unwrap().position = v(1, 3);
    let behind = voter(v(1, 2), vec![part(v(1, 3), v(1, 2), &[0])]);
    let s = shard([quiet, behind, None]);
    let plan = decide(2, &[s]).unwrap();
    assert_eq!((plan.cut, plan.shards[0].end), (v(1, 10), v(1, 3)));
    for bank in [BankId::A, BankId::B] {
        let step = plan.shards[0].steps[bank].clone().unwrap();
        assert_eq!((step.catch_up, step.append), (None, vec![]), "bank {bank}");
    }
}

/// The first mount after `tercet init`.
#[test]
fn an_empty_volume_opens() {
    let s = shard([voter(Version::ZERO, vec![]), voter(Version::ZERO, vec![]), None]);
    let plan = decide(1, &[s.clone(), s]).unwrap();
    assert_eq!((plan.cut, plan.entry), (Version::ZERO, v(1, 0)));
    assert_eq!(plan.shards[1].entry.shards, [0, 1]);
}

/// Struck to two voters: what only one of them has was not acked.
#[test]
fn two_named_voters() {
    let mut s = shard([voter(BASE, vec![part(v(1, 7), BASE, &[0])]), voter(BASE, vec![]), None]);
    s.named[BankId::C] = false;
    let mut damaged = s.clone();
    assert_eq!(decide(2, &[s]).unwrap().cut, v(1, 7), "whole, so it may stay");
    let a = damaged.fenced[BankId::A].as_mut().unwrap();
    (a.damaged_through, a.position) = (Some(v(1, 7)), BASE);
    assert_eq!(decide(2, &[damaged]).unwrap().cut, BASE, "one of two is no ack");
}

/// Striking out (docs/adr/0019): the floor that passed a voter which was away may stand in a pending
/// part only. With that voter and one of the others nothing can be opened: what it lacks may have
/// been forgotten. With both others it is left out.
#[test]
fn a_voter_that_the_chain_struck_out_is_not_one_of_two() {
    let mut raised = part(v(1, 9), BASE, &[0]);
    raised.floor = v(1, 8);
    raised.marks[BankId::A] = v(1, 6);
    let chain = || voter(v(1, 8), vec![raised.clone()]);
    let away = || voter(v(1, 5), vec![]);
    let refused = decide(2, &[shard([away(), chain(), None])]);
    let Err(Refusal::StruckOut { bank, applied, floor, needed, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((bank, applied, floor), (BankId::A, v(1, 5), v(1, 8)));
    assert_eq!(needed, "bank C");

    let plan = decide(2, &[shard([away(), chain(), chain()])]).unwrap();
    assert_eq!((plan.cut, plan.shards[0].settle), (v(1, 9), [BankId::C, BankId::B]));
    assert_eq!(plan.shards[0].entry.floor, v(1, 8));
    assert_eq!(plan.shards[0].entry.marks[BankId::A], v(1, 6));

    // A part that becomes void strikes nobody out: not two voters had it.
    let mut alone = raised.clone();
    alone.shards = vec![0, 1];
    let s0 = || shard([voter(v(1, 7), vec![]), voter(BASE, vec![alone.clone()]), None]);
    let s1 = shard([voter(BASE, vec![]), voter(BASE, vec![]), None]);
    let plan = decide(2, &[s0(), s1]).unwrap();
    assert_eq!((plan.cut, plan.shards[0].entry.floor), (v(1, 7), Version::ZERO));
}
