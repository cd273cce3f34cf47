//! A node without its network: refusals, roles and the protocol's messages over one engine.

mod config;
mod messages;

pub use self::config::{Metrics, NodeConfig, OpenError, SEGMENT_BYTES};
use crate::disk::Disk;
use crate::engine::{Checked, Engine, Owner, bad, failed, remove_log, survivor};
use crate::state::{Loaded, State};
use crate::wire::{
    BankId, Configuration, Envelope, Fault, InstallKind, KEY_LEN_MAX, Key, NodeError, Promise,
    Reply, Request, Role, Status, StoreId, VALUE_LEN_MAX, Version, VolumeId, WIRE_FORMAT,
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Most keys in one `read` or `digests`.
const READ_KEYS_MAX: usize = 4096;
/// A log that was synced so often since the last tick, and grew by no more than so many bytes, is one
/// of small syncs: what it will write next is cleared beforehand. It writes those bytes twice.
const OFTEN_SYNCS: u64 = 4;
const OFTEN_BYTES_MAX: u64 = 2 << 20;
/// Cleared beforehand beside twice what was written since the last tick, bytes.
const CLEAR_BYTES_MIN: u64 = 512 << 10;
/// Cleared beforehand of a log that rests, bytes: the first syncs after a rest, until the next tick, are not slow
/// either. Who commits now and then has only such syncs.
const CLEAR_BYTES_RESTING: u64 = 2 << 20;
/// Longest `holder`, bytes: it goes into the state file and into refusals.
const HOLDER_LEN_MAX: usize = 1024;

/// Who this node is and whom it obeys. Changed only under the engine's writer lock.
struct Identity {
    state: State,
    /// Epoch it is attached to; 0 = none.
    attached: u64,
    beats: u64,
    /// The state file could not be read or written: the node does not vote.
    failed: Option<String>,
    /// It could not be written: that is tried again until it works.
    unsaved: bool,
}

/// A node. Thread-safe; every call blocks (call it from a blocking thread).
pub struct Service {
    disk: Arc<dyn Disk>,
    config: NodeConfig,
    engine: RwLock<Arc<Engine>>,
    identity: Mutex<Identity>,
    delay_ms: AtomicU32,
    refuse: AtomicBool,
    uptime_ms: AtomicU64,
    /// End of the log at the last tick.
    last_written: AtomicU64,
    last_syncs: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
}

type Answer = Result<(Reply, Vec<Bytes>), NodeError>;

fn done(reply: Reply) -> Answer {
    Ok((reply, Vec::new()))
}

pub(crate) fn lock_and_load(disk: &dyn Disk) -> Result<Loaded, OpenError> {
    disk.lock().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => OpenError::Locked,
        _ => OpenError::Io { what: "locking the directory".into(), error },
    })?;
    let loaded = State::load(disk);
    loaded.map_err(|error| OpenError::Io { what: "reading the state".into(), error })
}

/// What remains of a node whose state is gone: its log still says whose it is.
pub(crate) fn survivor_state(owner: Option<Owner>, bank: BankId, shard: u16) -> State {
    State {
        sequence: 0,
        volume: owner.map(|o| o.volume),
        bank: owner.map_or(bank, |o| o.bank),
        shard: owner.map_or(shard, |o| o.shard),
        shards: 0,
        store: owner.map_or(StoreId::ZERO, |o| o.store),
        role: Role::Filling,
        configuration: Configuration::default(),
        promise: Promise::default(),
        wiping: false,
    }
}

pub(crate) fn owner_of(state: &State) -> Owner {
    Owner {
        store: state.store,
        volume: state.volume.unwrap_or(VolumeId::ZERO),
        bank: state.bank,
        shard: state.shard,
    }
}

impl Service {
    /// Opens the node in `disk`'s directory; makes one when the directory is empty.
    ///
    /// # Errors
    /// [`OpenError`]. Damage is not an error here: see [`Status::failed`].
    pub fn open(disk: Arc<dyn Disk>, config: NodeConfig) -> Result<Self, OpenError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |error| OpenError::Io { what, error }
        };
        let mut trouble = None;
        let mut state = match lock_and_load(&*disk)? {
            Loaded::UnknownFormat(file, format) => {
                return Err(OpenError::UnknownFormat { file: file.to_owned(), format });
            }
            Loaded::Good(mut s, wrong) => {
                if s.bank != config.bank || s.shard != config.shard {
                    return Err(OpenError::WrongPlace { bank: s.bank, shard: s.shard });
                }
                if let Some(wrong) = wrong {
                    tracing::warn!(%wrong, "one copy of the state was not whole: written again");
                    s.save(&*disk).map_err(io("writing the state"))?;
                }
                *s
            }
            Loaded::Missing => match survivor(&*disk).map_err(io("listing the directory"))? {
                None => {
                    let mut s = survivor_state(None, config.bank, config.shard);
                    s.role = Role::Blank;
                    s.store = config.new_store(StoreId::ZERO, 0);
                    s.save(&*disk).map_err(io("writing the state"))?;
                    s
                }
                owner => {
                    trouble = Some("the state files are missing".to_owned());
                    survivor_state(owner.flatten(), config.bank, config.shard)
                }
            },
            Loaded::Damaged(what) => {
                trouble = Some(format!("the state files are damaged: {what}"));
                let owner = survivor(&*disk).map_err(io("listing the directory"))?;
                survivor_state(owner.flatten(), config.bank, config.shard)
            }
        };
        if state.wiping {
            remove_log(&*disk).map_err(io("removing the old log"))?;
            state.wiping = false;
            state.save(&*disk).map_err(io("writing the state"))?;
        }
        if let Some(what) = &mut trouble {
            what.push_str(
                "; what it promised is not known, so it does not vote: have the volume refill it",
            );
            tracing::error!(%what, "damaged node");
        }
        let read_only = trouble.is_some();
        let engine =
            Engine::open(Arc::clone(&disk), owner_of(&state), config.settings(), read_only)?;
        engine.set_filling(state.role != Role::Voter);
        Ok(Self {
            disk,
            config,
            engine: RwLock::new(Arc::new(engine)),
            identity: Mutex::new(Identity {
                state,
                attached: 0,
                beats: 0,
                failed: trouble,
                unsaved: false,
            }),
            delay_ms: AtomicU32::new(0),
            refuse: AtomicBool::new(false),
            uptime_ms: AtomicU64::new(0),
            last_written: AtomicU64::new(0),
            last_syncs: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// Answers one message; `bulk` is its bulk, the second of the reply is the reply's bulk, piece
    /// by piece. What the reply says is durable when it returns. The token is the server's matter.
    ///
    /// # Errors
    /// [`NodeError`]: each refusal says what the caller can do.
    pub fn handle(&self, envelope: Envelope, request: Request, bulk: Bytes) -> Answer {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer(&envelope, request, bulk);
        if answer.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine.read())
    }

    fn answer(&self, e: &Envelope, request: Request, bulk: Bytes) -> Answer {
        if e.format != WIRE_FORMAT {
            return Err(NodeError::UnknownFormat { format: e.format });
        }
        match request {
            Request::Status => return done(Reply::Status(Box::new(self.status()))),
            Request::Inject(fault) => {
                self.check_place(e)?;
                self.inject(fault)?;
                return done(Reply::Done);
            }
            _ if self.refuse.load(Ordering::Relaxed) => {
                return Err(NodeError::Fault { what: "refusing on purpose".into() });
            }
            Request::Assign { volume, bank, shard, shards, role, configuration, wipe } => {
                if bank != self.config.bank || shard != self.config.shard {
                    let (bank, shard) = (self.config.bank, self.config.shard);
                    return Err(NodeError::WrongPlace { bank, shard });
                }
                return self.assign(e, volume, shards, role, configuration, wipe);
            }
            _ => {}
        }
        self.check_place(e)?;
        let engine = self.engine();
        self.check_alive(&engine)?;
        match request {
            Request::Fence { epoch, nonce, holder } => self.fence(&engine, epoch, nonce, holder),
            Request::Attach { chain, cut } => self.attach(&engine, e, chain, cut),
            Request::Append { lens, watermark } => self.append(&engine, e, &lens, watermark, &bulk),
            Request::Install { records, as_of, kind } => {
                for r in &records {
                    check_key(&r.key)?;
                    if r.len.unwrap_or(0) as usize > VALUE_LEN_MAX || !fits(r.version) {
                        return Err(bad("value or version over the limit"));
                    }
                    if kind == InstallKind::Repair && r.version > as_of {
                        return Err(bad("a repair moves settled records only"));
                    }
                }
                let mut tail = engine.writer();
                self.gate(e, true)?;
                if kind == InstallKind::CatchUp {
                    self.check_behind(&engine, as_of)?;
                }
                let (taken, end) = engine.install(&mut tail, &records, &bulk, as_of, kind)?;
                drop(tail);
                engine.wait(end)?;
                done(Reply::Installed { taken })
            }
            Request::Remove { key, seen, as_of } => {
                check_key(&key)?;
                let mut tail = engine.writer();
                self.gate(e, true)?;
                let (taken, end) = engine.remove(&mut tail, &key, Some(seen), as_of)?;
                drop(tail);
                engine.wait(end)?;
                done(Reply::Installed { taken })
            }
            Request::Join { at, reach } => {
                if at.max(reach).epoch > e.epoch {
                    return Err(bad("a position of a later epoch"));
                }
                let mut tail = engine.writer();
                self.gate(e, true)?;
                let end = engine.join(&mut tail, at, reach)?;
                drop(tail);
                done(Reply::Position(engine.wait(end)?))
            }
            Request::Cursor(cursor) => {
                if cursor.good.epoch > e.epoch || cursor.since > cursor.good {
                    return Err(bad("a cursor beyond what is settled"));
                }
                if cursor.after.len() > KEY_LEN_MAX {
                    return Err(bad(format!("a key has at most {KEY_LEN_MAX} bytes")));
                }
                let mut tail = engine.writer();
                self.gate(e, true)?;
                let end = engine.cursor(&mut tail, cursor)?;
                drop(tail);
                engine.wait(end)?;
                done(Reply::Done)
            }
            Request::Configure { configuration } => {
                let tail = engine.writer();
                self.gate(e, false)?;
                let have = self.identity.lock().state.configuration;
                if configuration.number < have.number
                    || (configuration.number == have.number && configuration != have)
                {
                    return Err(bad(format!("configuration {} is kept already", have.number)));
                }
                self.change(|s| s.configuration = configuration)?;
                drop(tail);
                done(Reply::Done)
            }
            Request::Admit { configuration } => self.admit(&engine, e, configuration),
            Request::Beat { watermark, release } => self.beat(&engine, e, watermark, release),
            Request::Status | Request::Assign { .. } | Request::Inject(_) => {
                Err(bad("answered above"))
            }
            reading => self.answer_reading(&engine, e, reading),
        }
    }

    /// Messages that change nothing durable.
    fn answer_reading(&self, engine: &Engine, e: &Envelope, request: Request) -> Answer {
        let records = |r: crate::engine::Records| {
            let (applied, records, damaged, next) = (r.applied, r.heads, r.damaged, r.next);
            Ok((Reply::Records { applied, records, damaged, next }, r.values))
        };
        match request {
            Request::Read { keys, through } => {
                self.check_read(engine, e, through, keys.len())?;
                let (applied, items, values) = engine.read(&keys, true)?;
                Ok((Reply::Found { applied, items }, values))
            }
            Request::Digests { keys, through } => {
                self.check_read(engine, e, through, keys.len())?;
                let (applied, items, _) = engine.read(&keys, false)?;
                done(Reply::Found { applied, items })
            }
            Request::Scan { start, end, limit, values, through } => {
                self.check_read(engine, e, through, 0)?;
                records(engine.scan(&start, &end, limit as usize, values))
            }
            Request::Hashes { through } => {
                self.check_read(engine, e, through, 0)?;
                let (applied, buckets) = engine.hashes();
                done(Reply::Hashes { applied, buckets })
            }
            Request::Bucket { bucket, after, limit, through } => {
                self.check_read(engine, e, through, 0)?;
                records(engine.bucket(bucket, &after, limit as usize))
            }
            Request::Delta { since, after, limit_bytes, values, through } => {
                self.check_read(engine, e, through, 0)?;
                records(engine.delta(since, &after, limit_bytes as usize, values))
            }
            Request::VerifyFiles { from } => {
                // Who does not hold the volume only looks.
                let mend = e.epoch != 0;
                if mend {
                    self.gate(e, false)?;
                }
                let checked = match from {
                    0 => self.check_state(mend)?,
                    _ => engine.check_segment(from, mend)?,
                };
                let Checked { bad, bytes, next } = checked;
                done(Reply::FilesVerified { bad, bytes, next })
            }
            Request::Missed { since, after, through } => {
                self.check_read(engine, e, through, 0)?;
                let (records, bytes) = engine.missed(since, &after);
                done(Reply::Missed { records, bytes })
            }
            Request::Tail { from } => {
                self.gate(e, false)?;
                let tail = engine.tail_parts(from);
                let lens = tail.parts.iter().map(|p| p.len() as u32).collect();
                let damaged_through = tail.lost;
                Ok((Reply::Tail { lens, more: tail.more, damaged_through }, tail.parts))
            }
            Request::Verify { after, budget_bytes } => {
                if e.epoch != 0 {
                    self.gate(e, false)?;
                }
                let (bad, records, bytes, next) = engine.verify(&after, budget_bytes as usize);
                done(Reply::Verified { bad, next, records, bytes })
            }
            _ => Err(bad("not a reading message")),
        }
    }

    // --- who may say what -------------------------------------------------------------------

    /// Volume and store of the envelope are ours.
    fn check_place(&self, e: &Envelope) -> Result<(), NodeError> {
        let i = self.identity.lock();
        let Some(have) = i.state.volume else {
            return Err(NodeError::WrongRole { role: i.state.role });
        };
        if e.volume != have {
            return Err(NodeError::WrongVolume { have });
        }
        if e.store != i.state.store {
            return Err(NodeError::WrongStore { have: i.state.store });
        }
        Ok(())
    }

    fn check_alive(&self, engine: &Engine) -> Result<(), NodeError> {
        let what = self.identity.lock().failed.clone().or_else(|| engine.failed());
        what.map_or(Ok(()), |what| Err(failed(what)))
    }

    /// The sender holds the promise, and this node is attached to its epoch where that is needed.
    /// What must not race with a fence calls this under the writer lock.
    fn gate(&self, e: &Envelope, attached: bool) -> Result<(), NodeError> {
        Self::permit(&self.identity.lock(), e, attached)
    }

    /// What is learned under this lock is learned before a fence, which then tells it.
    fn permit(i: &Identity, e: &Envelope, attached: bool) -> Result<(), NodeError> {
        let promise = &i.state.promise;
        if e.epoch == 0 || (e.epoch, e.nonce) != (promise.epoch, promise.nonce) {
            return Err(NodeError::Fenced { promise: promise.clone() });
        }
        if attached && i.attached != e.epoch {
            return Err(NodeError::NotAttached { attached: i.attached });
        }
        // A wipe may have replaced the store between the first look and the writer lock.
        if e.store != i.state.store {
            return Err(NodeError::WrongStore { have: i.state.store });
        }
        Ok(())
    }

    /// Makes sure that a read finds all through `through`.
    fn check_read(
        &self,
        engine: &Engine,
        e: &Envelope,
        through: Version,
        keys: usize,
    ) -> Result<(), NodeError> {
        if keys > READ_KEYS_MAX {
            return Err(bad(format!("at most {READ_KEYS_MAX} keys at once")));
        }
        if e.epoch == 0 {
            return Ok(());
        }
        self.gate(e, false)?;
        if engine.applied() >= through {
            return Ok(());
        }
        if through.epoch > e.epoch {
            return Err(bad("a position of a later epoch"));
        }
        let identity = self.identity.lock();
        Self::permit(&identity, e, true)?;
        engine.reach(through)
    }

    fn check_behind(&self, engine: &Engine, as_of: Version) -> Result<(), NodeError> {
        if self.identity.lock().state.role == Role::Filling {
            return Ok(());
        }
        let c = engine.chain_status();
        if c.cursor.is_some() || c.position.detached.is_some() || as_of > c.position.position {
            return Ok(());
        }
        Err(bad("this store is not behind"))
    }

    // --- for the owner ------------------------------------------------------------------------

    /// What an injected [`Fault::Delay`] asks to wait before each reply (the server does it).
    #[must_use]
    pub fn reply_delay(&self) -> Duration {
        Duration::from_millis(u64::from(self.delay_ms.load(Ordering::Relaxed)))
    }

    /// Breaks something on purpose, without an envelope: for the offline command line.
    ///
    /// # Errors
    /// [`NodeError::Fault`] when faults are not allowed.
    pub fn inject(&self, fault: Fault) -> Result<(), NodeError> {
        if !self.config.allow_faults {
            let what = "faults may not be injected: start the node with --allow-faults".into();
            return Err(NodeError::Fault { what });
        }
        tracing::warn!(?fault, "injected fault");
        let engine = self.engine();
        match fault {
            Fault::Put { key, value, version } => {
                check_key(&key)?;
                if value.len() > VALUE_LEN_MAX || !fits(version.unwrap_or_default()) {
                    return Err(bad("value or version over the limit"));
                }
                let end = engine.put_fault(&mut engine.writer(), key, value, version)?;
                engine.wait(end)?;
            }
            Fault::Corrupt { key } => engine.corrupt(&key)?,
            Fault::Drop { key } => {
                let mut tail = engine.writer();
                let (found, end) = engine.remove(&mut tail, &key, None, Version::ZERO)?;
                drop(tail);
                if found == 0 {
                    return Err(bad("nothing under this key"));
                }
                engine.wait(end)?;
            }
            Fault::Delay { millis } => self.delay_ms.store(millis, Ordering::Relaxed),
            Fault::Refuse { on } => self.refuse.store(on, Ordering::Relaxed),
        }
        Ok(())
    }

    /// As the message `status`, without an envelope.
    #[must_use]
    pub fn status(&self) -> Status {
        let engine = self.engine();
        let (state, attached, beats, trouble) = {
            let i = self.identity.lock();
            (i.state.clone(), i.attached, i.beats, i.failed.clone())
        };
        let mut status = status_of(&state, &engine);
        status.beats = beats;
        status.attached = attached;
        status.failed = trouble.or(status.failed);
        status.allow_faults = self.config.allow_faults;
        status.uptime_s = self.uptime_ms.load(Ordering::Relaxed) / 1000;
        status
    }

    /// The owner calls this every 50 ms with the time since the start: writes the synced-mark of a
    /// log that was idle since the last call (so within 100 ms; a busy log's entries carry their
    /// marks), and clears what a log that rests, or is one of many small syncs, will write next. Never
    /// does long work.
    pub fn tick(&self, now: Duration) {
        self.uptime_ms.store(now.as_millis() as u64, Ordering::Relaxed);
        let engine = self.engine();
        let written = engine.log.written();
        let before = self.last_written.swap(written, Ordering::Relaxed);
        let syncs = engine.log.counters.syncs.load(Ordering::Relaxed);
        let syncs = syncs.saturating_sub(self.last_syncs.swap(syncs, Ordering::Relaxed));
        let idle = before == written;
        // Bytes, unless a segment was begun since.
        let grown = written.saturating_sub(before);
        if !idle {
            if syncs >= OFTEN_SYNCS && grown <= OFTEN_BYTES_MAX {
                engine.clear(2 * grown + CLEAR_BYTES_MIN);
            }
            return;
        }
        if engine.failed().is_some() {
            return;
        }
        if let Err(e) = engine.mark() {
            // Every 50 ms while the disk is full: not worth a warning each time.
            tracing::debug!(error = %e, "cannot write a mark");
        }
        engine.clear(CLEAR_BYTES_RESTING);
    }

    /// The owner calls this about once a second from a thread of its own, again soon while it
    /// answers true: sidecars, compaction. Each call reads a 256th of a segment, or moves half a MiB.
    pub fn maintain(&self) -> bool {
        self.save_again();
        if self.identity.lock().failed.is_some() {
            return false;
        }
        self.engine().maintain().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "background work");
            false
        })
    }

    /// Is there so little room, or so much in the log that nobody needs, that what [`Service::maintain`]
    /// does should not wait between its steps?
    #[must_use]
    pub fn hurry(&self) -> bool {
        self.engine().hurry()
    }

    /// Clean shutdown: everything durable, sidecars written. Later calls are refused.
    pub fn close(&self) {
        if self.identity.lock().failed.is_some() {
            return;
        }
        self.engine().close();
    }

    /// Counters since the start.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics {
            requests: self.requests.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            ..self.engine().metrics()
        }
    }
}

fn fits(v: Version) -> bool {
    u32::try_from(v.epoch).is_ok()
}

fn check_key(key: &Key) -> Result<(), NodeError> {
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        return Err(bad(format!("a key has 1 to {KEY_LEN_MAX} bytes")));
    }
    Ok(())
}

/// A status without what only a running service knows.
pub(crate) fn status_of(state: &State, engine: &Engine) -> Status {
    let c = engine.chain_status();
    Status {
        volume: state.volume,
        bank: state.bank,
        shard: state.shard,
        shards: state.shards,
        store: state.store,
        role: state.role,
        configuration: state.configuration,
        promise: state.promise.clone(),
        beats: 0,
        attached: 0,
        position: c.position,
        watermark: c.watermark,
        floor: c.sum.floor,
        marks: c.sum.marks,
        openings: c.sum.openings,
        damaged_through: c.lost,
        failed: engine.failed(),
        cursor: c.cursor,
        space: engine.space(),
        damaged_records: engine.damaged_records(),
        allow_faults: false,
        uptime_s: 0,
        program: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
