//! How fast one node takes parts over HTTP on loopback, and where the time goes.
//!
//! ```text
//!   cargo run --release -p tercet-storenode --example load -- DIR [APPENDERS] [VALUE_KIB] [SECONDS]
//!   ... -- null ...      the same without a store: what HTTP alone costs
//! ```
//! Prints appends (each durable before its reply) per second, MiB/s, and latencies; then reads.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use storenode::client::{ClientLimits, NodeClient};
use storenode::disk::RealDisk;
use storenode::part;
use storenode::server::{Node, ServerLimits, bind, start};
use storenode::service::{NodeConfig, Service};
use storenode::token::Token;
use storenode::wire::{
    BankId, Configuration, Envelope, Found, NodeError, PerBank, Position, Reply, Request, Role,
    StoreId, Version, VolumeId, WIRE_FORMAT,
};

type Failed = Box<dyn std::error::Error + Send + Sync>;
const DEADLINE: Duration = Duration::from_secs(30);

/// Checks a part as a store would, and forgets it.
struct Null(Bytes);

impl Node for Null {
    fn handle(
        &self,
        _: Envelope,
        request: Request,
        bulk: Bytes,
    ) -> Result<(Reply, Vec<Bytes>), NodeError> {
        if let Request::Read { keys, .. } = request {
            let (version, digest) = (Version::ZERO, storenode::wire::Digest::ZERO);
            let found = Found::Record { version, digest, len: Some(self.0.len() as u32) };
            let items = vec![found; keys.len()];
            return Ok((
                Reply::Found { applied: version, items },
                vec![self.0.clone(); keys.len()],
            ));
        }
        let version = match part::decode(bulk) {
            Ok(part) => part.head.version,
            Err(_) => Version::ZERO,
        };
        let p = Position { position: version, applied: version, high: version, detached: None };
        Ok((Reply::Position(p), Vec::new()))
    }
    fn reply_delay(&self) -> Duration {
        Duration::ZERO
    }
    fn tick(&self, _: Duration) {}
    fn maintain(&self) -> bool {
        false
    }
    fn metrics(&self) -> String {
        String::new()
    }
}

struct Plan {
    appenders: usize,
    value_len: usize,
    time: Duration,
}

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| {
        args.get(i).map_or(Ok(default), |s| s.parse().map_err(|e| format!("{s}: {e}")))
    };
    let plan = Plan {
        appenders: number(1, 1)?,
        value_len: number(2, 1024)? << 10,
        time: Duration::from_secs(number(3, 3)? as u64),
    };
    let dir = args.first().ok_or("where? give a directory, or null")?;
    let limits = ServerLimits::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if dir == "null" {
            let value = Bytes::from(vec![1; plan.value_len]);
            return run(Arc::new(Null(value)), None, &plan, limits).await;
        }
        let disk = Arc::new(RealDisk::open(dir.as_ref(), true)?);
        let service = Arc::new(Service::open(disk, NodeConfig::new(BankId::A, 0))?);
        let store = service.status().store;
        run(Arc::clone(&service), Some(store), &plan, limits).await?;
        println!("{:?}", service.metrics());
        tokio::task::spawn_blocking(move || service.close()).await?;
        Ok(())
    })
}

async fn run<N: Node>(
    node: Arc<N>,
    store: Option<StoreId>,
    plan: &Plan,
    limits: ServerLimits,
) -> Result<(), Failed> {
    let token = Token::random()?;
    let server = start(bind("127.0.0.1:0".parse()?).await?, node, token.clone(), limits)?;
    let url = format!("http://{}", server.addr());
    let client = NodeClient::new(&url, &token, ClientLimits::default())?;
    let volume = VolumeId([3; 16]);
    let envelope = Envelope {
        format: WIRE_FORMAT,
        volume,
        store: store.unwrap_or_default(),
        epoch: 1,
        nonce: 1,
    };
    if store.is_some() {
        open_volume(&client, envelope).await?;
    }
    let seq = Arc::new(AtomicU64::new(0));
    let value = Bytes::from((0..plan.value_len).map(|i| i as u8).collect::<Vec<_>>());
    let began = Instant::now();
    let tasks: Vec<_> = (0..plan.appenders)
        .map(|_| {
            let (client, seq, value, time) =
                (client.clone(), Arc::clone(&seq), value.clone(), plan.time);
            tokio::spawn(async move {
                let mut took = Vec::new();
                while began.elapsed() < time {
                    let n = seq.fetch_add(1, Relaxed) + 1;
                    let head = part::PartHead {
                        version: Version::new(1, n),
                        predecessor: Version::new(1, n - 1),
                        watermark: Version::new(1, n.saturating_sub(64)),
                        shards: vec![0],
                        ..Default::default()
                    };
                    let key = n.to_be_bytes().to_vec();
                    let bytes = part::encode(&head, &[(key, Some(value.clone()))]);
                    let lens = vec![bytes.len() as u32];
                    let request = Request::Append { lens, watermark: head.watermark };
                    let at = Instant::now();
                    client.call(envelope, &request, vec![bytes], DEADLINE).await?;
                    took.push(at.elapsed());
                }
                Ok::<_, Failed>(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    report("append", &mut took, began.elapsed(), plan.value_len);
    let last = Version::new(1, seq.load(Relaxed));
    let beat = Request::Beat { watermark: last, release: false };
    let (reply, _) =
        client.call(envelope, &beat, vec![], DEADLINE).await.unwrap_or((Reply::Done, Bytes::new()));
    if store.is_some() {
        let Reply::Position(p) = reply else { return Err("no position".into()) };
        assert_eq!(p.position, last, "all of it is durable");
    }
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < plan.time.min(Duration::from_secs(2)) {
        let n = took.len() as u64 % last.seq + 1;
        let request = Request::Read { keys: [n.to_be_bytes().to_vec()].into(), through: last };
        let at = Instant::now();
        client.call(envelope, &request, vec![], DEADLINE).await?;
        took.push(at.elapsed());
    }
    report("read", &mut took, began.elapsed(), plan.value_len);
    server.stop().await;
    Ok(())
}

async fn open_volume(client: &NodeClient, envelope: Envelope) -> Result<(), Failed> {
    let mut stores = PerBank::from_fn(|b| Some(StoreId([b as u8 + 1; 16])));
    stores[BankId::A] = Some(envelope.store);
    let assign = Request::Assign {
        volume: envelope.volume,
        bank: BankId::A,
        shard: 0,
        shards: 1,
        role: Role::Voter,
        configuration: Configuration { number: 1, stores },
        wipe: false,
    };
    let blank = Envelope { volume: VolumeId::ZERO, epoch: 0, ..envelope };
    client.call(blank, &assign, vec![], DEADLINE).await?;
    let fence = Request::Fence { epoch: 1, nonce: 1, holder: "load".into() };
    client.call(envelope, &fence, vec![], DEADLINE).await?;
    let attach = Request::Attach { chain: vec![], cut: Version::ZERO };
    client.call(envelope, &attach, vec![], DEADLINE).await?;
    let head = part::PartHead {
        version: Version::new(1, 0),
        cut: Some(Version::ZERO),
        shards: vec![0],
        ..Default::default()
    };
    let opening = part::encode(&head, &[]);
    let request = Request::Append { lens: vec![opening.len() as u32], watermark: Version::ZERO };
    client.call(envelope, &request, vec![opening], DEADLINE).await?;
    Ok(())
}

fn report(what: &str, took: &mut [Duration], elapsed: Duration, value_len: usize) {
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let per_second = took.len() as f64 / elapsed.as_secs_f64();
    println!(
        "{what}: {per_second:.0}/s, {:.1} MiB/s, p50 {:?}, p99 {:?}, max {:?} ({} of {} KiB)",
        per_second * value_len as f64 / f64::from(1 << 20),
        at(0.5),
        at(0.99),
        at(1.0),
        took.len(),
        value_len >> 10,
    );
}
