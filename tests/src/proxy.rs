//! A network between mount and node: a relay on 127.0.0.1 that understands where a request of HTTP/1.1
//! begins and ends, and can lose it.
//!
//! It cuts a node off (what is under way never arrives, connections stay open and silent), or repeats
//! requests, some of them late, so that others overtake them.

use crate::random::Random;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How the network is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Net {
    /// As it should be.
    Good = 0,
    /// Nothing gets through in either direction; nobody is told.
    Cut = 1,
    /// Of three requests one is late by up to 30 ms, one is sent twice at once, and one comes again, after up
    /// to 200 ms. The node's answers to repetitions go nowhere.
    Repeating = 2,
}

/// No body of ours is larger.
const BODY_MAX: usize = 64 << 20;
/// While cut off, this often is looked whether it still is.
const LOOK: Duration = Duration::from_millis(5);
/// A node answers a repetition, or it does not.
const REPEAT_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Shared {
    node: SocketAddr,
    net: AtomicU8,
    draws: AtomicU64,
    seed: u64,
    repeated: AtomicU64,
}

/// A relay, for as long as the test runs.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Relays a port of its own to the node's.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn start(node: u16, seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a relay can listen");
        let port = listener.local_addr().expect("it listens").port();
        let shared = Arc::new(Shared {
            node: SocketAddr::from(([127, 0, 0, 1], node)),
            net: AtomicU8::new(Net::Good as u8),
            draws: AtomicU64::new(0),
            seed,
            repeated: AtomicU64::new(0),
        });
        let relays = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = relays.clone();
                thread::spawn(move || shared.relay(&client));
            }
        });
        Self { port, shared }
    }

    /// From now on.
    pub fn set(&self, net: Net) {
        self.shared.net.store(net as u8, Ordering::SeqCst);
    }

    /// Requests that were sent a second time so far.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.shared.repeated.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn is(&self, net: Net) -> bool {
        self.net.load(Ordering::SeqCst) == net as u8
    }

    /// Waits for the network. What waits here when it is mended still arrives, late.
    fn hold(&self) {
        while self.is(Net::Cut) {
            thread::sleep(LOOK);
        }
    }

    fn draw(&self, below: u64) -> u64 {
        let n = self.draws.fetch_add(1, Ordering::SeqCst);
        Random::new(self.seed ^ n.wrapping_mul(0x9e37_79b9)).below(below)
    }

    fn relay(self: &Arc<Self>, client: &TcpStream) {
        self.hold();
        let Ok(node) = TcpStream::connect(self.node) else { return };
        let _ = (client.set_nodelay(true), node.set_nodelay(true));
        let ends = client.try_clone().and_then(|c| Ok((c, node.try_clone()?)));
        let Ok((mut to_client, mut from_node)) = ends else { return };
        let answers = self.clone();
        let back = thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from_node.read(&mut buffer) {
                answers.hold();
                if to_client.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _ = (to_client.shutdown(Shutdown::Both), from_node.shutdown(Shutdown::Both));
        });
        let mut reader = BufReader::new(client);
        while let Ok(Some(request)) = read_request(&mut reader) {
            self.hold();
            if self.is(Net::Repeating) {
                self.repeat(&request);
            }
            if (&node).write_all(&request).is_err() {
                break;
            }
        }
        let _ = (client.shutdown(Shutdown::Both), node.shutdown(Shutdown::Both));
        let _ = back.join();
    }

    fn repeat(self: &Arc<Self>, request: &Arc<Vec<u8>>) {
        let (shared, request) = (self.clone(), request.clone());
        let wait = match self.draw(3) {
            0 => return thread::sleep(Duration::from_millis(self.draw(30))),
            1 => 0,
            _ => self.draw(200),
        };
        self.repeated.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || -> io::Result<()> {
            thread::sleep(Duration::from_millis(wait));
            let mut node = TcpStream::connect(shared.node)?;
            node.set_read_timeout(Some(REPEAT_PATIENCE))?;
            node.write_all(&request)?;
            node.shutdown(Shutdown::Write)?;
            io::copy(&mut node, &mut io::sink()).map(|_| ())
        });
    }
}

/// One request with its body; `None` = the client has closed.
fn read_request(from: &mut impl BufRead) -> io::Result<Option<Arc<Vec<u8>>>> {
    let mut request = Vec::new();
    let mut body = 0;
    loop {
        let begin = request.len();
        if from.take(64 << 10).read_until(b'\n', &mut request)? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&request[begin..]).to_ascii_lowercase();
        if let Some(length) = line.strip_prefix("content-length:") {
            body = length.trim().parse().map_err(io::Error::other)?;
        }
        if line.starts_with("transfer-encoding:") || body > BODY_MAX {
            return Err(io::Error::other("not a request of ours"));
        }
        if line == "\r\n" {
            break;
        }
    }
    let head = request.len();
    request.resize(head + body, 0);
    from.read_exact(&mut request[head..])?;
    Ok(Some(Arc::new(request)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Instant;

    /// A node that answers `ok` and notes the bodies.
    fn node() -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let noted = noted.clone();
                thread::spawn(move || {
                    let mut reader = BufReader::new(&client);
                    while let Ok(Some(request)) = read_request(&mut reader) {
                        let text = String::from_utf8_lossy(&request).into_owned();
                        noted.lock().unwrap().push(text[text.len() - 4..].to_owned());
                        (&client)
                            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                            .unwrap();
                    }
                });
            }
        });
        (port, seen)
    }

    fn ask(client: &mut TcpStream, n: usize) -> io::Result<()> {
        write!(client, "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n{n:04}")?;
        let mut answer = [0; 40];
        client.read_exact(&mut answer)
    }

    #[test]
    fn it_repeats_some_cuts_off_and_lets_through() {
        let (port, seen) = node();
        let proxy = Proxy::start(port, 3);
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
        (0..10).for_each(|n| ask(&mut client, n).unwrap());
        assert_eq!(seen.lock().unwrap().len(), 10);
        proxy.set(Net::Repeating);
        (10..40).for_each(|n| ask(&mut client, n).unwrap());
        let repeated = usize::try_from(proxy.repeated()).unwrap();
        assert!((10..30).contains(&repeated), "{repeated} of 30");
        crate::until(Duration::from_secs(10), "the late ones arrive", || {
            seen.lock().unwrap().len() == 40 + repeated
        });
        assert!(!seen.lock().unwrap().is_sorted(), "some were overtaken");
        proxy.set(Net::Cut);
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(ask(&mut client, 50).is_err(), "nothing gets through");
        proxy.set(Net::Good);
        let began = Instant::now();
        let mut fresh = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
        ask(&mut fresh, 60).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
