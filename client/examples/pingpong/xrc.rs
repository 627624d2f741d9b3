//! Extended reliable connections, as those of ibv_xsrq_pingpong: a server and one or more clients, each with one SRQ, and
//! for every client a connection each way. The server sends what is for a client over the connection to the next one,
//! which works when they share an XRC domain.
use std::fmt;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context as _, Error, Result, bail, ensure};
use rnic::{
    Access, Completion, ConnectOptions, Context, Cq, Endpoint, Gid, Mr, Mtu, Qp, QpConfig, Srq, TargetQp,
    Xrcd, XrcdOpen,
};

use crate::address::{connect, gid, line, listen, number};
use crate::{Args, FILL, report};

/// The file that the domain of everybody on this machine stands for.
const DOMAIN: &str = "/tmp/xrc_domain";
/// LID, QPN that receives, QPN that sends, PSN, SRQN, GID in hexadecimal, and a NUL.
const LINE: usize = "0000:000000:000000:000000:000000:00000000000000000000000000000000".len() + 1;
/// What both sides say before they leave: the server answers when all clients have said it.
const END: &[u8; 4] = b"END\0";

pub fn run(args: &Args) -> Result<()> {
    let mut side = Side::open(args)?;
    side.post_receives(side.count())?;
    match &args.host {
        Some(host) => {
            let mut stream = connect(host, args.port)?;
            side.tell(&mut stream, 0)?;
            let theirs = side.hear(&mut stream)?;
            side.join(0, theirs, stream)?;
        }
        None => {
            let listener = listen(args.port)?;
            for at in 0..side.count() {
                let (mut stream, _) = listener.accept()?;
                let theirs = side.hear(&mut stream)?;
                side.tell(&mut stream, at)?;
                side.join(at, theirs, stream)?;
            }
        }
    }
    let begin = Instant::now();
    side.play()?;
    let elapsed = begin.elapsed();
    side.part()?;
    report(args, elapsed);
    Ok(())
}

/// Where the two QPs and the SRQ of one side are found.
#[derive(Copy, Clone, Debug)]
struct Address {
    recv_qpn: u32,
    send_qpn: u32,
    psn: u32,
    srqn: u32,
    gid: Gid,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(line: &str) -> Result<Address> {
        let fields: Vec<&str> = line.split(':').collect();
        let [_lid, recv_qpn, send_qpn, psn, srqn, address] = fields[..] else {
            bail!("{} fields instead of six", fields.len());
        };
        Ok(Address {
            recv_qpn: number(recv_qpn)?,
            send_qpn: number(send_qpn)?,
            psn: number(psn)?,
            srqn: number(srqn)?,
            gid: gid(address)?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address {
            recv_qpn,
            send_qpn,
            psn,
            srqn,
            gid,
        } = self;
        let gid = std::net::Ipv6Addr::from(*gid);
        write!(
            f,
            "LID 0000, QPN RECV {recv_qpn:06x} SEND {send_qpn:06x}, PSN {psn:06x}, SRQN {srqn:06x}, GID {gid}"
        )
    }
}

/// The other side of a connection.
struct Peer {
    srqn: u32,
    stream: TcpStream,
    /// Messages for it that were sent.
    sent: u32,
}

struct Side<'a> {
    args: &'a Args,
    options: ConnectOptions,
    mtu: Mtu,
    /// By connection: what receives, and what sends.
    targets: Vec<TargetQp>,
    senders: Vec<Qp>,
    peers: Vec<Peer>,
    sends: Cq,
    receives: Cq,
    srq: Srq,
    /// Everything is received and sent here.
    buffer: Mr,
}

impl<'a> Side<'a> {
    fn open(args: &'a Args) -> Result<Self> {
        let count = match args.host {
            Some(_) => 1,
            None => args.clients,
        };
        let mtu = Mtu::from_bytes(args.mtu)?;
        let options = ConnectOptions {
            access: Access::REMOTE_WRITE | Access::REMOTE_READ,
            ..args.connect_options(mtu)
        };
        let context = Context::open(&args.socket, &args.device)?;
        let pd = context.alloc_pd()?;
        let xrcd = domain(&context)?;
        let (sends, receives) = (context.create_cq(count.into())?, context.create_cq(count.into())?);
        let srq = pd.create_xrc_srq(&xrcd, &receives, count.into(), 1)?;
        let (mut targets, mut senders) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let target = xrcd.create_target()?;
            target.init(&options)?;
            targets.push(target);
            // Only the last message for a client completes: until then there is one more in the queue each time.
            let depth = u32::from(count).saturating_mul(args.iters);
            let config = QpConfig::xrc_ini(&sends).max_send_wr(depth.min(context.attr().max_qp_wr / 2));
            let sender = pd.create_qp(config)?;
            sender.init(&options)?;
            senders.push(sender);
        }
        let buffer = pd.alloc_mr(args.size().max(1), Access::LOCAL_WRITE)?;
        buffer.write_at(0, &vec![FILL; args.size()]);
        Ok(Side {
            args,
            options,
            mtu,
            targets,
            senders,
            peers: Vec::new(),
            sends,
            receives,
            srq,
            buffer,
        })
    }

    /// Connections.
    fn count(&self) -> usize {
        self.targets.len()
    }

    /// Tells a peer where connection `at` is.
    fn tell(&self, stream: &mut TcpStream, at: usize) -> Result<()> {
        let Endpoint { qpn, psn, gid, .. } = self.senders[at].endpoint(&self.options)?;
        let ours = Address {
            recv_qpn: self.targets[at].qpn(),
            send_qpn: qpn,
            psn,
            srqn: self.srq.number(),
            gid,
        };
        println!("   local: {ours}");
        let Address {
            recv_qpn,
            send_qpn,
            srqn,
            ..
        } = ours;
        let gid = u128::from_be_bytes(gid.0);
        // RoCE has no LIDs.
        let line = format!(
            "{:04x}:{recv_qpn:06x}:{send_qpn:06x}:{psn:06x}:{srqn:06x}:{gid:032x}\0",
            0
        );
        stream.write_all(line.as_bytes()).context("telling our address")
    }

    fn hear(&self, stream: &mut TcpStream) -> Result<Address> {
        let theirs: Address = line(stream, [0; LINE])?;
        println!("  remote: {theirs}");
        Ok(theirs)
    }

    /// Connects both ways of connection `at`.
    fn join(&mut self, at: usize, theirs: Address, stream: TcpStream) -> Result<()> {
        let Address {
            recv_qpn,
            send_qpn,
            psn,
            srqn,
            gid,
        } = theirs;
        let endpoint = |qpn| Endpoint {
            version: Endpoint::VERSION,
            qpn,
            psn,
            gid,
            mtu: self.mtu,
            rd_atomic: 1,
            features: 0,
        };
        self.targets[at].connect(&endpoint(send_qpn), &self.options)?;
        self.senders[at].connect(&endpoint(recv_qpn), &self.options)?;
        self.peers.push(Peer {
            srqn,
            stream,
            sent: 0,
        });
        Ok(())
    }

    fn post_receives(&self, count: usize) -> Result<()> {
        self.srq.post_recv(|batch| {
            for _ in 0..count {
                batch.recv(self.buffer.slice(0..self.args.size()));
            }
        })?;
        Ok(())
    }

    /// Sends the next message for a peer; the last one completes.
    fn send(&mut self, at: usize) -> Result<()> {
        let count = self.count();
        let peer = &mut self.peers[at];
        let qp = &self.senders[(at + peer.sent as usize) % count];
        peer.sent += 1;
        let last = peer.sent >= self.args.iters;
        let srqn = peer.srqn;
        let message = self.buffer.slice(0..self.args.size());
        qp.post(|batch| {
            let wr = batch.send(message).wr_id(at as u64).to_srq(srqn);
            if last {
                wr.signaled();
            }
        })?;
        Ok(())
    }

    /// All exchanges. The server begins.
    fn play(&mut self) -> Result<()> {
        let (count, iters) = (self.count(), self.args.iters);
        if self.args.host.is_none() {
            for at in 0..count {
                self.send(at)?;
            }
        }
        let all = count as u32 * iters;
        let mut received = 0;
        while received < all {
            let mut out = [Completion::default()];
            let polled = self.args.next(&self.receives, &mut out);
            polled.with_context(|| format!("{received} messages received of {all}"))?;
            let done = out[0].ok().context("a connection failed")?;
            self.post_receives(1)?;
            received += 1;
            // A client gets its messages over whichever connection they come.
            let from = self.targets.iter().position(|target| target.qpn() == done.qpn);
            let at = if count == 1 {
                0
            } else {
                from.context("a completion of no QP of ours")?
            };
            if self.peers[at].sent < iters {
                self.send(at)?;
            }
        }
        for _ in 0..count {
            let mut out = [Completion::default()];
            self.args.next(&self.sends, &mut out)?;
            out[0].ok().context("a connection failed")?;
        }
        Ok(())
    }

    /// Leaves when nobody needs our QPs any more.
    fn part(&mut self) -> Result<()> {
        let say = |stream: &mut TcpStream| stream.write_all(END).context("saying the end");
        let hear = |stream: &mut TcpStream| {
            let mut end = *END;
            stream.read_exact(&mut end).context("waiting for the end")?;
            ensure!(end == *END, "the peer said something else than \"END\"");
            Ok(())
        };
        let mut streams: Vec<&mut TcpStream> = self.peers.iter_mut().map(|peer| &mut peer.stream).collect();
        if self.args.host.is_some() {
            streams.iter_mut().try_for_each(|stream| say(stream))?;
            return streams.iter_mut().try_for_each(|stream| hear(stream));
        }
        streams.iter_mut().try_for_each(|stream| hear(stream))?;
        streams.iter_mut().try_for_each(|stream| say(stream))
    }
}

/// The domain of everybody on this machine, or, where its file cannot be had, one of our own.
fn domain(context: &Context) -> Result<Xrcd> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(O_CREAT).mode(0o440).open(DOMAIN);
    match file {
        Ok(file) => Ok(context.open_xrcd(file, XrcdOpen::Create)?),
        Err(error) => {
            eprintln!("pingpong: {DOMAIN}: {error}; other processes cannot share this one's XRC domain");
            Ok(context.alloc_xrcd()?)
        }
    }
}

/// `O_CREAT`, which the standard library takes only with writing.
const O_CREAT: i32 = 0o100;
