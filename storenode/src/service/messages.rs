//! The messages that change who a node obeys, what it holds, or what it is.

use super::{Answer, HOLDER_LEN_MAX, Service, done, fits, owner_of};
use crate::engine::{Checked, Engine, bad, failed, remove_log};
use crate::part;
use crate::state::{Loaded, State};
use crate::wire::{
    Configuration, Envelope, NodeError, Promise, Reply, Role, StoreId, Version, VolumeId,
};
use bytes::Bytes;
use std::sync::Arc;

impl Service {
    /// Changes the durable state. The caller holds the writer lock.
    pub(super) fn change(&self, f: impl FnOnce(&mut State)) -> Result<(), NodeError> {
        let mut state = self.identity.lock().state.clone();
        f(&mut state);
        if let Err(e) = state.save(&*self.disk) {
            // It is not known which state the next start finds: say nothing more until it is.
            let what = format!("writing the state failed: {e}");
            let mut i = self.identity.lock();
            i.failed = Some(what.clone());
            i.unsaved = true;
            return Err(failed(what));
        }
        self.identity.lock().state = state;
        Ok(())
    }

    /// After [`Service::change`] failed (a full disk): writes what this process goes by, over whatever
    /// that left. Once it is durable the node knows again what its next start finds, and votes.
    pub(super) fn save_again(&self) {
        if !self.identity.lock().unsaved {
            return;
        }
        let engine = self.engine();
        let _tail = engine.writer();
        let mut state = self.identity.lock().state.clone();
        if state.wiping {
            // Half wiped: the engine is of the old store. A start goes on with that.
            if engine.owner.store != state.store {
                return;
            }
            state.wiping = false;
        }
        // Beyond what the failed attempt may have written.
        state.sequence += 1;
        if state.save(&*self.disk).is_ok() {
            tracing::info!("the state is written again: this node may vote");
            let mut i = self.identity.lock();
            i.state = state;
            i.failed = None;
            i.unsaved = false;
        }
    }

    /// Looks at both copies of the state; with `mend` one that is damaged is written again.
    pub(super) fn check_state(&self, mend: bool) -> Result<Checked, NodeError> {
        let engine = self.engine();
        let _tail = engine.writer();
        let io = |e: std::io::Error| failed(format!("reading the state: {e}"));
        let wrong = match State::load(&*self.disk).map_err(io)? {
            Loaded::Good(_, wrong) => wrong,
            Loaded::Missing => Some("both copies of the state are missing".into()),
            Loaded::Damaged(what) => Some(what),
            Loaded::UnknownFormat(file, n) => Some(format!("{file}: format {n} is unknown")),
        };
        let bad: Vec<String> = wrong.into_iter().collect();
        if !bad.is_empty() {
            tracing::warn!(what = %bad[0], mend, "scrub found damage in a file");
            if mend {
                self.change(|_| ())?;
            }
        }
        Ok(Checked { bad, bytes: 0, next: Some(1) })
    }

    pub(super) fn fence(
        &self,
        engine: &Engine,
        epoch: u64,
        nonce: u64,
        mut holder: String,
    ) -> Answer {
        if epoch == 0 || !fits(Version::new(epoch, 0)) {
            return Err(bad("epoch out of range"));
        }
        while holder.len() > HOLDER_LEN_MAX {
            holder.pop();
        }
        {
            // Whoever holds the old epoch has written before this or is refused after it.
            let tail = engine.writer();
            let promise = self.identity.lock().state.promise.clone();
            let same = (promise.epoch, promise.nonce) == (epoch, nonce);
            if !same && promise.epoch >= epoch {
                return Err(NodeError::Fenced { promise });
            }
            if !same {
                let promise = Promise { epoch, nonce, holder, released: false };
                self.change(|s| s.promise = promise)?;
                self.identity.lock().attached = 0;
            }
            drop(tail);
        }
        // Positions told from now on include all that was written for the old epoch, and what was
        // applied stays applied over a restart: the opener sees no parts for it, so its attach
        // cannot name them and would void them (docs/adr/0010-opening.md).
        engine.sync()?;
        engine.mark()?;
        // A mark that the clock wrote in between may not be durable yet.
        engine.sync()?;
        done(Reply::Status(Box::new(self.status())))
    }

    pub(super) fn attach(
        &self,
        engine: &Engine,
        e: &Envelope,
        mut chain: Vec<Version>,
        cut: Version,
    ) -> Answer {
        chain.sort_unstable();
        let mut tail = engine.writer();
        self.gate(e, false)?;
        let end = engine.attach(&mut tail, e.epoch, &chain, cut)?;
        self.identity.lock().attached = e.epoch;
        drop(tail);
        done(Reply::Position(engine.wait(end)?))
    }

    pub(super) fn append(
        &self,
        engine: &Engine,
        e: &Envelope,
        lens: &[u32],
        watermark: Version,
        bulk: &Bytes,
    ) -> Answer {
        if watermark.epoch > e.epoch {
            return Err(bad("a watermark of a later epoch"));
        }
        let mut parts = Vec::with_capacity(lens.len());
        let mut at = 0usize;
        for len in lens {
            let to = at + *len as usize;
            if to > bulk.len() {
                return Err(bad("the parts are cut short"));
            }
            let p = part::decode(bulk.slice(at..to)).map_err(|e| bad(e.to_string()))?;
            if !p.head.shards.contains(&self.config.shard) {
                return Err(bad(format!("part {} is for other shards", p.head.version)));
            }
            if p.head.version.epoch > e.epoch || p.head.predecessor >= p.head.version {
                return Err(bad(format!("part {} has an impossible version", p.head.version)));
            }
            at = to;
            parts.push(p);
        }
        if at != bulk.len() {
            return Err(bad("more bytes than parts"));
        }
        let mut tail = engine.writer();
        self.gate(e, true)?;
        let end = engine.append(&mut tail, &parts, watermark)?;
        drop(tail);
        done(Reply::Position(engine.wait(end)?))
    }

    pub(super) fn admit(
        &self,
        engine: &Engine,
        e: &Envelope,
        configuration: Configuration,
    ) -> Answer {
        let tail = engine.writer();
        self.gate(e, false)?;
        let (store, role, have) = {
            let i = self.identity.lock();
            (i.state.store, i.state.role, i.state.configuration)
        };
        if configuration.stores[self.config.bank] != Some(store) {
            return Err(bad("the configuration names another store here"));
        }
        if configuration.number < have.number {
            return Err(bad(format!("configuration {} is kept already", have.number)));
        }
        let c = engine.chain_status();
        if role == Role::Filling && (c.cursor.is_some() || c.position.position == Version::ZERO) {
            return Err(NodeError::NotThere { position: c.position.position });
        }
        self.change(|s| {
            s.role = Role::Voter;
            s.configuration = configuration;
        })?;
        engine.set_filling(false);
        drop(tail);
        done(Reply::Status(Box::new(self.status())))
    }

    pub(super) fn beat(
        &self,
        engine: &Engine,
        e: &Envelope,
        watermark: Version,
        release: bool,
    ) -> Answer {
        {
            let mut i = self.identity.lock();
            Self::permit(&i, e, false)?;
            i.beats += 1;
            let attached = i.attached;
            if attached == e.epoch {
                if watermark.epoch > e.epoch {
                    return Err(bad("a watermark of a later epoch"));
                }
                // Without the writer lock: what is committed stays so, whoever fences meanwhile.
                engine.learn(watermark)?;
            } else if !release {
                return Err(NodeError::NotAttached { attached });
            }
        }
        if release {
            engine.mark()?;
            let _tail = engine.writer();
            self.gate(e, false)?;
            self.change(|s| s.promise.released = true)?;
        }
        done(Reply::Position(engine.position()))
    }

    pub(super) fn assign(
        &self,
        e: &Envelope,
        volume: VolumeId,
        shards: u16,
        role: Role,
        configuration: Configuration,
        wipe: bool,
    ) -> Answer {
        if volume == VolumeId::ZERO || role == Role::Blank || (wipe && role != Role::Filling) {
            return Err(bad("assign needs a volume, and role filling for a wiped store"));
        }
        let mut current = self.engine.write();
        // A step of the old log's background work removes files by name: not beside the new log.
        let background = current.hold_background();
        let mut tail = current.writer();
        let state = self.identity.lock().state.clone();
        let whole = self.identity.lock().failed.is_none();
        if state.role == Role::Blank && whole && !wipe {
            if e.store != StoreId::ZERO && e.store != state.store {
                return Err(NodeError::WrongStore { have: state.store });
            }
        } else {
            if e.store != state.store {
                return Err(NodeError::WrongStore { have: state.store });
            }
            let same = state.volume == Some(volume) && state.configuration == configuration;
            if !wipe && same && state.role == role && state.shards == shards && whole {
                // Said again.
                drop((tail, background));
                drop(current);
                return done(Reply::Status(Box::new(self.status())));
            }
            if !wipe {
                return Err(match state.volume {
                    Some(have) if have != volume => NodeError::WrongVolume { have },
                    _ => NodeError::WrongRole { role: state.role },
                });
            }
            if state.volume == Some(volume) && e.epoch < state.promise.epoch {
                return Err(NodeError::Fenced { promise: state.promise });
            }
        }
        let keep_promise = state.volume == Some(volume);
        let new_store =
            if wipe { self.config.new_store(state.store, state.sequence) } else { state.store };
        self.change(|s| {
            s.volume = Some(volume);
            s.bank = self.config.bank;
            s.shard = self.config.shard;
            s.shards = shards;
            s.role = role;
            s.configuration = configuration;
            s.store = new_store;
            s.wiping = true;
            if !keep_promise {
                s.promise = Promise::default();
            }
        })?;
        tail.closed = true;
        let io = |what: &'static str| move |e| failed(format!("{what}: {e}"));
        remove_log(&*self.disk).map_err(io("removing the old log"))?;
        // Until the new log is there a start removes what it finds: so it stays true if this fails.
        let owner = owner_of(&self.identity.lock().state);
        let fresh = Engine::open(Arc::clone(&self.disk), owner, self.config.settings(), false)
            .map_err(|e| failed(e.to_string()))?;
        fresh.set_filling(role != Role::Voter);
        let fresh = Arc::new(fresh);
        drop((tail, background));
        *current = Arc::clone(&fresh);
        {
            let mut i = self.identity.lock();
            i.attached = 0;
            i.failed = None;
            i.unsaved = false;
        }
        let tail = fresh.writer();
        self.change(|s| s.wiping = false)?;
        drop(tail);
        drop(current);
        done(Reply::Status(Box::new(self.status())))
    }
}
