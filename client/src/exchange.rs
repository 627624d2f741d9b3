//! A tiny exchange over TCP, for two processes to tell each other their endpoints and whatever else they need:
//! one line of JSON a message. It is not authenticated; use it where you would use perftest.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wake::deadline;
use crate::{Error, Result};

/// Longest message taken from a peer.
const MAX_LINE: u64 = 1 << 20;
/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(50);

/// Listens for peers at `address`, such as `("::", 18515)`.
pub fn listen(address: impl ToSocketAddrs) -> Result<Listener> {
    TcpListener::bind(address)
        .map(Listener)
        .map_err(failed("listening"))
}

/// Connects to a peer that listens at `address`, such as `("server", 18515)`. With a `patience` it tries until
/// that is over, for a peer that starts at the same time; without it tries once.
pub fn connect(address: impl ToSocketAddrs, patience: Option<Duration>) -> Result<Exchange> {
    let end: Option<Instant> = deadline(patience.or(Some(Duration::ZERO)));
    loop {
        match TcpStream::connect(&address) {
            Ok(stream) => return Exchange::new(stream),
            Err(_) if end.is_some_and(|end| Instant::now() < end) => std::thread::sleep(RETRY),
            Err(error) => return Err(failed("connecting")(error)),
        }
    }
}

/// Waits for peers.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// The next peer.
    pub fn accept(&self) -> Result<Exchange> {
        let (stream, _) = self.0.accept().map_err(failed("accepting"))?;
        Exchange::new(stream)
    }

    /// Where it listens: tells the port when port 0 was asked for.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.0.local_addr().map_err(failed("asking for the own address"))
    }
}

/// A connection to the peer.
#[derive(Debug)]
pub struct Exchange(BufReader<TcpStream>);

impl Exchange {
    fn new(stream: TcpStream) -> Result<Exchange> {
        stream.set_nodelay(true).map_err(failed("setting up"))?;
        Ok(Exchange(BufReader::new(stream)))
    }

    /// How long [`Exchange::receive`] waits; `None`, as it begins, is for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.0
            .get_ref()
            .set_read_timeout(timeout)
            .map_err(failed("setting the timeout"))
    }

    /// Sends a value.
    pub fn send(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line =
            serde_json::to_vec(value).map_err(|error| Error::Exchange(format!("serialising: {error}")))?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line).map_err(failed("sending"))
    }

    /// Receives a value.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = Vec::new();
        (&mut self.0)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .map_err(failed("receiving"))?;
        if line.last() != Some(&b'\n') {
            return Err(Error::Exchange("the peer closed the connection".into()));
        }
        serde_json::from_slice(&line)
            .map_err(|error| Error::Exchange(format!("the peer sent something else than expected: {error}")))
    }

    /// Sends ours and receives the peer's.
    pub fn swap<T: Serialize + DeserializeOwned>(&mut self, ours: &T) -> Result<T> {
        self.send(ours)?;
        self.receive()
    }

    /// Returns when the peer has called it too.
    pub fn barrier(&mut self) -> Result<()> {
        self.swap(&())
    }
}

fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::Exchange(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_values_and_notices_a_peer_that_left() {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut exchange = listener.accept().unwrap();
            let theirs: (u32, String) = exchange.swap(&(1, "server".to_string())).unwrap();
            exchange.barrier().unwrap();
            theirs
        });
        let mut exchange = connect(address, None).unwrap();
        assert_eq!(
            exchange.swap(&(2, "client".to_string())).unwrap(),
            (1, "server".to_string())
        );
        exchange.barrier().unwrap();
        assert_eq!(server.join().unwrap(), (2, "client".to_string()));
        let gone = exchange.receive::<u32>().unwrap_err().to_string();
        assert!(gone.contains("closed the connection"), "{gone}");
    }

    #[test]
    fn a_message_of_another_kind_is_an_error() {
        let listener = listen("127.0.0.1:0").unwrap();
        let mut client = connect(listener.local_addr().unwrap(), None).unwrap();
        let mut server = listener.accept().unwrap();
        client.send(&"text").unwrap();
        assert!(matches!(server.receive::<u32>(), Err(Error::Exchange(_))));
    }
}
