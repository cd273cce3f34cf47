//! The network between a mount and the nodes: every message is a task of its own that arrives some
//! time later, or never, or twice, whether or not its sender still waits, or still lives.

use crate::broken::{Bent, Broken, Memory, bend, bend_back, coming_late};
use crate::node::{Node, Outcome, join};
use crate::trace::Trace;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{BankId, Envelope, Reply, Request};
use tokio::sync::oneshot;
use voter::bank::{Bank, BankError};

/// How the network behaves: chances are per message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// Longest delay each way, milliseconds.
    pub delay_ms: u64,
    /// Chance that a request or a reply is lost.
    pub lose: f64,
    /// Chance that a request arrives a second time, some time later.
    pub twice: f64,
    /// Chance that a request arrives long after its sender gave up.
    pub late: f64,
}

/// The network of one world.
pub struct Net {
    trace: Arc<Trace>,
    broken: Option<Broken>,
    state: Mutex<State>,
}

struct State {
    dice: StdRng,
    weather: Weather,
    messages: u64,
    links: BTreeMap<(BankId, u16), Link>,
    memories: BTreeMap<(BankId, u16), Memory>,
}

/// What happens to one message.
struct Fate {
    there_ms: u64,
    back_ms: u64,
    lost: bool,
    reply_lost: bool,
    /// A second copy arrives so long after the first.
    again_ms: Option<u64>,
}

impl Net {
    /// A calm network.
    #[must_use]
    pub fn new(trace: Arc<Trace>, seed: u64, broken: Option<Broken>) -> Self {
        let dice = StdRng::seed_from_u64(seed);
        let state = State {
            dice,
            weather: Weather::default(),
            messages: 0,
            links: BTreeMap::new(),
            memories: BTreeMap::new(),
        };
        Self { trace, broken, state: Mutex::new(state) }
    }

    /// Changes how it behaves.
    pub fn set(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    /// Changes the way to one node.
    pub fn set_link(&self, bank: BankId, shard: u16, link: Link) {
        self.state.lock().links.insert((bank, shard), link);
    }

    fn link(&self, bank: BankId, shard: u16) -> Link {
        self.state.lock().links.get(&(bank, shard)).copied().unwrap_or_default()
    }

    /// Messages so far.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.state.lock().messages
    }

    fn draw(&self, deadline: Duration) -> (u64, Fate) {
        let mut s = self.state.lock();
        s.messages += 1;
        let (w, number) = (s.weather, s.messages);
        let dice = &mut s.dice;
        let chance = |dice: &mut StdRng, p: f64| p > 0.0 && dice.random::<f64>() < p;
        let delay = |dice: &mut StdRng| match w.delay_ms {
            0 => 0,
            longest => dice.random_range(0..=longest),
        };
        let (lost, reply_lost) = (chance(dice, w.lose), chance(dice, w.lose));
        let (twice, late) = (chance(dice, w.twice), chance(dice, w.late));
        let (mut there_ms, back_ms) = (delay(dice), delay(dice));
        let again_ms = twice.then(|| delay(dice) + dice.random_range(0..2_000));
        if late {
            there_ms += deadline.as_millis() as u64 + dice.random_range(0..3_000);
        }
        (number, Fate { there_ms, back_ms, lost, reply_lost, again_ms })
    }
}

/// The way from one mount to one node.
pub struct Wire {
    net: Arc<Net>,
    node: Arc<Node>,
    /// The mount, for the trace.
    mount: u64,
}

/// The way to one node, from wherever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Nothing passes, and nobody is told.
    pub cut: bool,
    /// Each message takes so much longer, milliseconds each way.
    pub slow_ms: u64,
}

type Answer = Result<(Reply, Bytes), BankError>;

impl Wire {
    /// A way from mount number `mount` to this node.
    #[must_use]
    pub fn new(net: Arc<Net>, node: Arc<Node>, mount: u64) -> Arc<Self> {
        Arc::new(Self { net, node, mount })
    }
}

/// One message on its way.
struct Message {
    net: Arc<Net>,
    node: Arc<Node>,
    mount: u64,
    number: u64,
}

impl Message {
    /// Arrives after a while; answers when the node has.
    async fn arrive(
        self: Arc<Self>,
        e: Envelope,
        request: Request,
        bulk: Bytes,
        ms: u64,
    ) -> Answer {
        sleep(ms).await;
        let node = &self.node;
        let place = format!("{}{}", node.bank, node.shard);
        let Some(life) = node.life() else {
            return Err(BankError::Unreachable(format!("{place} does not run")));
        };
        // A stopped process has it in its socket and reads it when it goes on.
        loop {
            let woken = node.woken.notified();
            if !node.hangs() {
                break;
            }
            woken.await;
        }
        let (e, request, bulk) = match self.bend(e, request, bulk) {
            Bent::Passed(e, request, bulk) => (e, request, bulk),
            Bent::Answered(reply) => return Ok((reply, Bytes::new())),
        };
        let mut answer = self.deliver(life, e, request, bulk);
        if let (Some(rule), Ok((reply, _))) = (self.net.broken, &mut answer) {
            let mut state = self.net.state.lock();
            // Configurations are of the shard, all else is of the node.
            let bank = if rule == Broken::ConfiguredOnOne { BankId::A } else { node.bank };
            bend_back(rule, reply, state.memories.entry((bank, node.shard)).or_default());
        }
        answer
    }

    /// Hands it to the node, and takes note.
    fn deliver(&self, life: u64, e: Envelope, request: Request, bulk: Bytes) -> Answer {
        let place = format!("{}{}", self.node.bank, self.node.shard);
        let told = Told(&request).to_string();
        let (len, sum) = (bulk.len(), crc(&bulk));
        let (trace, number, mount) = (&self.net.trace, self.number, self.mount);
        let answer = match self.node.handle(life, e, request, bulk) {
            Outcome::Gone => {
                trace.note(format_args!("#{number} {place} ends in {told}"));
                return Err(BankError::Unreachable(format!("{place} went away")));
            }
            Outcome::Answered(answer) => answer,
        };
        match &answer {
            Ok((reply, bulk)) => trace.note(format_args!(
                "#{number} m{mount} {place} {told} {len}/{sum:08x} -> {} {}/{:08x}",
                Said(reply),
                bulk.len(),
                crc(bulk)
            )),
            Err(e) => trace.note(format_args!(
                "#{number} m{mount} {place} {told} {len}/{sum:08x} -> refused: {e}"
            )),
        }
        answer.map_err(BankError::from)
    }

    /// Bends it, if a rule is broken in this world. What is answered in the node's place may still
    /// reach it later.
    fn bend(self: &Arc<Self>, e: Envelope, request: Request, bulk: Bytes) -> Bent {
        let (Some(rule), Some(service)) = (self.net.broken, self.node.service()) else {
            return Bent::Passed(e, request, bulk);
        };
        let copy = (coming_late(rule, &e, request.clone()), bulk.clone());
        let node = (self.node.bank, self.node.shard);
        let (bent, later_ms) = bend(rule, node, &service, e, request, bulk);
        if let Some(ms) = later_ms {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                sleep(ms).await;
                if let Some(life) = this.node.life() {
                    let _ = this.deliver(life, e, copy.0, copy.1);
                }
            });
        }
        bent
    }
}

fn crc(b: &[u8]) -> u32 {
    // Any checksum does: it only tells two runs apart.
    b.iter().fold(0x811c_9dc5, |h, x| (h ^ u32::from(*x)).wrapping_mul(0x0100_0193))
}

/// Time passes; none passes for 0, but others get their turn.
async fn sleep(ms: u64) {
    if ms == 0 {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

impl Bank for Wire {
    fn call(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer> {
        let (number, fate) = self.net.draw(deadline);
        let Link { cut, slow_ms } = self.net.link(self.node.bank, self.node.shard);
        let message = Arc::new(Message {
            net: Arc::clone(&self.net),
            node: Arc::clone(&self.node),
            mount: self.mount,
            number,
        });
        let (tell, told) = oneshot::channel();
        if !cut && !fate.lost {
            let bulk = join(bulk);
            if let Some(again) = fate.again_ms {
                let copy = Arc::clone(&message).arrive(
                    envelope,
                    request.clone(),
                    bulk.clone(),
                    fate.there_ms + again + slow_ms,
                );
                tokio::spawn(copy);
            }
            tokio::spawn(async move {
                let wait = fate.there_ms + slow_ms;
                let answer = message.arrive(envelope, request, bulk, wait).await;
                sleep(fate.back_ms + slow_ms).await;
                if !fate.reply_lost {
                    // Nobody may wait any more: that is the sender's matter.
                    let _ = tell.send(answer);
                }
            });
        }
        let limit = tokio::time::Instant::now() + deadline;
        Box::pin(async move {
            match tokio::time::timeout_at(limit, told).await {
                Ok(Ok(answer)) => return answer,
                // Lost on the way: the sender waits for its deadline.
                Ok(Err(_)) => tokio::time::sleep_until(limit).await,
                Err(_) => {}
            }
            Err(BankError::Timeout)
        })
    }

    fn name(&self) -> String {
        format!("{}{}", self.node.bank, self.node.shard)
    }
}

/// A request in a few words.
struct Told<'a>(&'a Request);

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use Request as R;
        match self.0 {
            R::Status => write!(f, "status"),
            R::Assign { role, wipe, configuration, .. } => {
                write!(f, "assign {role:?} wipe {wipe} n{}", configuration.number)
            }
            R::Fence { epoch, .. } => write!(f, "fence e{epoch}"),
            R::Attach { chain, cut } => write!(
                f,
                "attach {}x {}..{} cut {cut}",
                chain.len(),
                chain.first().copied().unwrap_or_default(),
                chain.last().copied().unwrap_or_default()
            ),
            R::Append { lens, watermark } => write!(f, "append {} w {watermark}", lens.len()),
            R::Read { keys, through } => write!(f, "read {} @{through}", keys.len()),
            R::Digests { keys, through } => write!(f, "digests {} @{through}", keys.len()),
            R::Scan { values, through, .. } => write!(f, "scan {values} @{through}"),
            R::Hashes { through } => write!(f, "hashes @{through}"),
            R::Bucket { bucket, through, .. } => write!(f, "bucket {bucket} @{through}"),
            R::Tail { from } => write!(f, "tail {from}"),
            R::Delta { since, through, .. } => write!(f, "delta {since} @{through}"),
            R::Install { records, as_of, kind } => {
                write!(f, "install {kind:?} {} as of {as_of}", records.len())
            }
            R::Remove { seen, as_of, .. } => write!(f, "remove {seen} as of {as_of}"),
            R::Join { at, reach } => write!(f, "join {at} reach {reach}"),
            R::Cursor(c) => {
                write!(f, "cursor {} through {} up to {:02x?}", c.since, c.good, c.after)
            }
            R::VerifyFiles { from } => write!(f, "verify files from {from}"),
            R::Missed { since, .. } => write!(f, "missed since {since}"),
            R::Configure { configuration } => write!(f, "configure n{}", configuration.number),
            R::Admit { configuration } => write!(f, "admit n{}", configuration.number),
            R::Beat { watermark, release } => write!(f, "beat {watermark} {release}"),
            R::Verify { .. } => write!(f, "verify"),
            R::Inject(_) => write!(f, "inject"),
        }
    }
}

/// A reply in a few words.
struct Said<'a>(&'a Reply);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Reply::Status(s) => write!(
                f,
                "{:?} n{} p{} {} applied {} high {} w {} lost {:?} failed {:?}",
                s.role,
                s.configuration.number,
                s.promise.epoch,
                s.position.position,
                s.position.applied,
                s.position.high,
                s.watermark,
                s.damaged_through,
                s.failed
            ),
            Reply::Position(p) => write!(
                f,
                "{} applied {} high {} detached {:?}",
                p.position, p.applied, p.high, p.detached
            ),
            Reply::Found { applied, items } => write!(f, "{} found @{applied}", items.len()),
            Reply::Records { applied, records, damaged, next } => write!(
                f,
                "{} records {} damaged next {} @{applied}",
                records.len(),
                damaged.len(),
                next.is_some()
            ),
            Reply::Hashes { applied, .. } => write!(f, "hashes @{applied}"),
            Reply::Tail { lens, more, damaged_through } => {
                write!(f, "{} parts more {more} damaged {damaged_through:?}", lens.len())
            }
            Reply::Installed { taken } => write!(f, "{taken} taken"),
            Reply::Verified { bad, records, .. } => write!(f, "{records} read {} bad", bad.len()),
            Reply::FilesVerified { bad, .. } => write!(f, "{} bad files", bad.len()),
            Reply::Missed { records, bytes } => write!(f, "missed {records}, {bytes} bytes"),
            Reply::Done => write!(f, "done"),
        }
    }
}
