//! One connection on one thread: the thread waits for its own socket, in `poll(2)`. With a driver that
//! threads share, each message would wake that one first, only to wake the thread
//! (docs/adr/0018-connection-threads.md).

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use std::cell::Cell;
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire};
use std::task::{Context, Poll, Wake, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once: they are set to zero first, which is cheap as long as they stay in the processor's
/// cache.
const READ_MAX: usize = 64 << 10;

/// What the thread would wait for.
#[derive(Default)]
struct Wants {
    /// Something to read; until then there is nothing.
    read: Cell<bool>,
    /// Room to write.
    write: Cell<bool>,
}

/// The socket, for whoever reads and writes. Of one thread: nobody is woken through it.
pub(super) struct Own {
    stream: Rc<TcpStream>,
    wants: Rc<Wants>,
}

/// The thread's side of an [`Own`].
pub(super) struct Waiting {
    stream: Rc<TcpStream>,
    wants: Rc<Wants>,
    bell: Arc<Bell>,
}

/// A socket that does not block, as the two halves of a thread that waits for it.
///
/// # Errors
/// Out of descriptors, most likely.
pub(super) fn alone(stream: TcpStream) -> io::Result<(Own, Waiting)> {
    let (stream, wants) = (Rc::new(stream), Rc::<Wants>::default());
    let rope = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let bell = Arc::new(Bell { state: AtomicU8::new(BUSY), rope });
    Ok((Own { stream: stream.clone(), wants: wants.clone() }, Waiting { stream, wants, bell }))
}

const BUSY: u8 = 0;
/// The thread waits, or is about to.
const WAITS: u8 = 1;
const RUNG: u8 = 2;

/// Wakes the thread from others: a timer, a lane that is free, the end of the server.
struct Bell {
    state: AtomicU8,
    rope: OwnedFd,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, AcqRel) == WAITS {
            // It can only be full if it was rung already.
            let _ = rustix::io::write(&self.rope, &1u64.to_ne_bytes());
        }
    }
}

impl Waiting {
    /// Works on `work`, which uses the other half, to its end.
    pub(super) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let (mut work, waker) = (pin!(work), Waker::from(Arc::clone(&self.bell)));
        loop {
            if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
                return done;
            }
            if self.bell.state.compare_exchange(BUSY, WAITS, AcqRel, Acquire).is_ok() {
                self.wait();
            }
            // Not a store: what was done before it was rung must be seen.
            self.bell.state.swap(BUSY, AcqRel);
        }
    }

    fn wait(&self) {
        let mut of = PollFlags::empty();
        of.set(PollFlags::IN, self.wants.read.get());
        of.set(PollFlags::OUT, self.wants.write.get());
        let mut both = [
            PollFd::new(&self.bell.rope, PollFlags::IN),
            // Asked for nothing it would still say that the peer hung up, again and again.
            PollFd::new(&*self.stream, of),
        ];
        let n = if of.is_empty() { 1 } else { 2 };
        match poll(&mut both[..n], None) {
            // Interrupted, or no memory: it is looked at again.
            Err(_) => self.may_read_and_write(),
            Ok(_) => {
                if !both[0].revents().is_empty() {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(&self.bell.rope, &mut count);
                }
                if n == 2 && !both[1].revents().is_empty() {
                    self.may_read_and_write();
                }
            }
        }
    }

    fn may_read_and_write(&self) {
        self.wants.read.set(false);
        self.wants.write.set(false);
    }
}

/// Repeats a call that a signal ended; notes when it would have to wait.
fn tried<T>(wants: &Cell<bool>, mut call: impl FnMut() -> io::Result<T>) -> Poll<io::Result<T>> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                wants.set(true);
                return Poll::Pending;
            }
            other => return Poll::Ready(other),
        }
    }
}

impl AsyncRead for Own {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.wants.read.get() {
            return Poll::Pending;
        }
        let len = buf.remaining().min(READ_MAX);
        let into = buf.initialize_unfilled_to(len);
        tried(&self.wants.read, || (&*self.stream).read(into)).map_ok(|n| {
            // Less than there was room for: there is no more, for now. `poll` finds out what has come since.
            self.wants.read.set(0 < n && n < len);
            buf.advance(n);
        })
    }
}

impl AsyncWrite for Own {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        tried(&self.wants.write, || (&*self.stream).write(from))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        tried(&self.wants.write, || (&*self.stream).write_vectored(from))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        tried(&self.wants.write, || self.stream.shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        (near, far)
    }

    /// Counts how often a future is looked at.
    async fn counted<T>(polls: &Cell<u32>, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            polls.set(polls.get() + 1);
            work.as_mut().poll(cx)
        })
        .await
    }

    #[test]
    fn the_socket_wakes_and_so_does_another_thread_and_nothing_else() {
        let (near, mut far) = pair();
        let (own, thread) = alone(near).unwrap();
        let (say, said) = oneshot::channel();
        let talk = std::thread::spawn(move || {
            let pause = || std::thread::sleep(Duration::from_millis(30));
            pause();
            say.send(7u8).unwrap();
            for _ in 0..3 {
                pause();
                far.write_all(b"ping").unwrap();
                let mut got = [0; 4];
                far.read_exact(&mut got).unwrap();
                assert_eq!(&got, b"pong");
            }
            pause();
            drop(far);
        });
        let polls = Cell::new(0);
        let rounds = thread.run(counted(&polls, async {
            let mut own = own;
            assert_eq!(said.await.unwrap(), 7);
            let (mut rounds, mut got) = (0, [0; 16]);
            loop {
                match own.read(&mut got).await.unwrap() {
                    0 => return rounds,
                    n => assert_eq!(&got[..n], b"ping"),
                }
                own.write_all(b"pong").await.unwrap();
                rounds += 1;
            }
        }));
        talk.join().unwrap();
        assert_eq!(rounds, 3);
        // One for each thing that happened, and a few that come too early; not one after the other.
        assert!(polls.get() < 16, "{} polls", polls.get());
    }

    #[test]
    fn more_than_the_socket_takes_is_written_when_it_takes_more() {
        let (near, mut far) = pair();
        let (own, thread) = alone(near).unwrap();
        let sent = vec![7u8; 32 << 20];
        let read = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            got
        });
        let polls = Cell::new(0);
        thread.run(counted(&polls, async {
            let mut own = own;
            own.write_all(&sent).await.unwrap();
            own.shutdown().await.unwrap();
        }));
        assert!(read.join().unwrap() == sent);
        assert!(polls.get() > 1, "it never had to wait");
    }
}
