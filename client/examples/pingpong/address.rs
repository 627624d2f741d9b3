//! How the pingpong tools of rdma-core tell each other their QPs: over TCP, one line of fixed width a QP each way with a NUL
//! at its end, then "done" and a NUL from the client.
use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, ensure};
use rnic::{Endpoint, Gid, Mtu};

/// Longest wait for the server to start listening.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(50);
/// LID:QPN:PSN:GID in hexadecimal, and a NUL.
const LINE: usize = "0000:000000:000000:00000000000000000000000000000000".len() + 1;
const DONE: &[u8] = b"done\0";

/// Where a QP is found.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Address {
    pub qpn: u32,
    pub psn: u32,
    pub gid: Gid,
}

impl Address {
    /// That of an unused line.
    pub const NONE: Address = Address {
        qpn: 0,
        psn: 0,
        gid: Gid([0; 16]),
    };

    /// Our QP's.
    pub fn of(endpoint: &Endpoint) -> Address {
        let Endpoint { qpn, psn, gid, .. } = *endpoint;
        Address { qpn, psn, gid }
    }

    /// What a QP of ours connects to.
    pub fn endpoint(self, mtu: Mtu) -> Endpoint {
        let Address { qpn, psn, gid } = self;
        Endpoint {
            version: Endpoint::VERSION,
            qpn,
            psn,
            gid,
            mtu,
            rd_atomic: 1,
            features: 0,
        }
    }
}

/// As client: tells the server our addresses, and learns as many of its own.
pub fn ask(host: &str, port: u16, ours: &[Address]) -> Result<Vec<Address>> {
    let mut stream = connect(host, port)?;
    send(&mut stream, ours)?;
    let theirs = receive(&mut stream, ours.len())?;
    stream.write_all(DONE)?;
    Ok(theirs)
}

/// As server: waits for a client and calls `connect` with its addresses before it tells it ours. The client may send
/// from then on.
pub fn tell(port: u16, ours: &[Address], connect: impl FnOnce(Vec<Address>) -> Result<()>) -> Result<()> {
    let (mut stream, _) = listen(port)?.accept()?;
    connect(receive(&mut stream, ours.len())?)?;
    send(&mut stream, ours)?;
    let mut done = [0; DONE.len()];
    stream
        .read_exact(&mut done)
        .context("the client went away before it had our address")?;
    ensure!(done == DONE, "the client said something else than \"done\"");
    Ok(())
}

/// The server, once it listens.
pub fn connect(host: &str, port: u16) -> Result<TcpStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect((host, port)) {
            Err(_) if Instant::now() < end => std::thread::sleep(RETRY),
            result => return result.with_context(|| format!("cannot connect to {host} port {port}")),
        }
    }
}

/// Where clients connect.
pub fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind(("::", port)).with_context(|| format!("cannot listen on TCP port {port}"))
}

fn send(stream: &mut TcpStream, addresses: &[Address]) -> Result<()> {
    for Address { qpn, psn, gid } in addresses {
        let gid = u128::from_be_bytes(gid.0);
        // RoCE has no LIDs.
        let line = format!("{:04x}:{qpn:06x}:{psn:06x}:{gid:032x}\0", 0);
        stream.write_all(line.as_bytes()).context("telling our address")?;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, count: usize) -> Result<Vec<Address>> {
    (0..count).map(|_| line(stream, [0; LINE])).collect()
}

/// The peer's next line, of the length of `line`.
pub fn line<T: FromStr<Err = Error>, const N: usize>(stream: &mut TcpStream, mut line: [u8; N]) -> Result<T> {
    stream
        .read_exact(&mut line)
        .context("waiting for the peer's address")?;
    let line = String::from_utf8_lossy(&line);
    line.trim_end_matches('\0')
        .parse()
        .with_context(|| format!("the peer sent {line:?}, which is no address"))
}

/// A number of a line.
pub fn number(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 16).context("a number")
}

/// The GID of a line.
pub fn gid(text: &str) -> Result<Gid> {
    Ok(Gid(u128::from_str_radix(text, 16)
        .context("the GID")?
        .to_be_bytes()))
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(line: &str) -> Result<Address> {
        let fields: Vec<&str> = line.split(':').collect();
        let [_lid, qpn, psn, gid] = fields[..] else {
            anyhow::bail!("{} fields instead of four", fields.len());
        };
        Ok(Address {
            qpn: number(qpn)?,
            psn: number(psn)?,
            gid: self::gid(gid)?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gid = Ipv6Addr::from(self.gid);
        write!(
            f,
            "LID 0x0000, QPN {:#08x}, PSN {:#08x}, GID {gid}",
            self.qpn, self.psn
        )
    }
}
