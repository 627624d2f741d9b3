//! The kernel's end: `verbs-peer` in the guest, which does with libibverbs and rxe what it is told line by line.
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rnic::{Completion, ConnectOptions, Endpoint, Gid, Mtu, Opcode, RemoteMr, Status};
use rnic_tests::probe::{Op, Rng};

use crate::end::{Atomic, AtomicWr, End, Image, RecvWr, Resources, SendWr, Service, TIMEOUT};
use rnic_guest::Channel;

/// How long the guest may take for a command that waits for nothing.
const COMMAND: Duration = Duration::from_secs(30);
/// Commands on their way at a time: their answers must fit into the buffers on the way back.
const BATCH: usize = 32;

/// `verbs-peer` on the device `rxe0`.
#[derive(Debug)]
pub struct Theirs {
    channel: Channel,
    psns: Rng,
    psn: u32,
    tokens: u32,
}

impl Theirs {
    /// The peer at the other end of this port of the guest.
    pub fn new(channel: Channel) -> Theirs {
        Theirs {
            channel,
            psns: Rng::new(&[0xA110]),
            psn: 0,
            tokens: 0,
        }
    }

    /// Sends commands and returns the answers without their `ok`; an answer of `error` is an `Err`.
    fn ask(&mut self, commands: &[String], limit: Duration) -> Result<Vec<Result<String, String>>> {
        let mut answers = Vec::new();
        for some in commands.chunks(BATCH) {
            self.channel.send(&(some.join("\n") + "\n"))?;
            let deadline = Instant::now() + limit;
            for command in some {
                let line = self
                    .channel
                    .line(deadline)
                    .with_context(|| format!("rxe: {command}"))?;
                answers.push(match (line.strip_prefix("ok"), line.strip_prefix("error ")) {
                    (Some(answer), _) => Ok(answer.trim().into()),
                    (None, Some(why)) => Err(why.into()),
                    (None, None) => bail!("rxe: {command}: the answer {line:?} is none"),
                });
            }
        }
        Ok(answers)
    }

    /// Does what cannot fail.
    fn all(&mut self, commands: &[String]) -> Result<Vec<String>> {
        let answers = self.ask(commands, COMMAND)?;
        let each = commands.iter().zip(answers);
        each.map(|(command, answer)| answer.map_err(|why| anyhow::anyhow!("rxe: {command}: {why}")))
            .collect()
    }

    fn one(&mut self, command: String) -> Result<String> {
        Ok(self.all(&[command])?.pop().unwrap_or_default())
    }

    /// Skips answers to commands that were given up.
    fn sync(&mut self) -> Result<()> {
        self.tokens += 1;
        let wanted = format!("ok sync {}", self.tokens);
        self.channel.send(&format!("sync {}\n", self.tokens))?;
        let deadline = Instant::now() + 2 * COMMAND;
        while self.channel.line(deadline)? != wanted {}
        Ok(())
    }
}

impl End for Theirs {
    fn name(&self) -> &'static str {
        "rxe"
    }

    fn open(&mut self, resources: &Resources) -> Result<(Endpoint, RemoteMr)> {
        self.sync()?;
        let Resources {
            service,
            family,
            memory,
            depth,
            shared,
        } = *resources;
        let qp_type = match service {
            Service::Rc => "rc",
            Service::Uc => "uc",
            Service::Ud => "ud",
        };
        let gid = Gid::from(family.theirs());
        let region = self.one(format!("open {} {memory} {}", hex(gid), depth))?;
        let qpn = self.one(format!("create_qp {qp_type} {depth} {}", u8::from(shared)))?;
        let (addr, rkey) = region.split_once(' ').context("an address and a key")?;
        self.psn = self.psns.next() as u32 & 0xFF_FFFF;
        let endpoint = Endpoint {
            version: Endpoint::VERSION,
            qpn: qpn.parse()?,
            psn: self.psn,
            gid,
            mtu: Mtu::Mtu4096,
            rd_atomic: 16,
            features: 0,
        };
        let region = RemoteMr {
            addr: addr.parse()?,
            rkey: rkey.parse()?,
            len: memory as u64,
        };
        Ok((endpoint, region))
    }

    fn connect(&mut self, peer: &Endpoint, mtu: Mtu) -> Result<()> {
        let (gid, mtu, psn) = (hex(peer.gid), mtu as u8, self.psn);
        let retries = ConnectOptions::default().retry_cnt;
        self.one(format!(
            "connect {} {gid} {} {psn} {mtu} {TIMEOUT} {retries}",
            peer.qpn, peer.psn
        ))?;
        Ok(())
    }

    fn fill(&mut self, images: &[Image]) -> Result<()> {
        let commands: Vec<_> = images
            .iter()
            .map(|image| format!("fill {}", words(image)))
            .collect();
        self.all(&commands)?;
        Ok(())
    }

    fn check(&mut self, images: &[Image]) -> Result<Vec<Result<(), String>>> {
        let commands: Vec<_> = images
            .iter()
            .map(|image| format!("check {}", words(image)))
            .collect();
        let answers = self.ask(&commands, COMMAND)?;
        Ok(answers.into_iter().map(|answer| answer.map(drop)).collect())
    }

    fn post_recv(&mut self, list: &[RecvWr]) -> Result<()> {
        let command = |RecvWr { wr_id, local }: &RecvWr| {
            format!("post_recv {wr_id} {} {} {}", local.offset, local.len, local.parts)
        };
        self.all(&list.iter().map(command).collect::<Vec<_>>())?;
        Ok(())
    }

    fn post_send(&mut self, list: &[SendWr]) -> Result<()> {
        let command = |wr: &SendWr| {
            let SendWr {
                wr_id,
                local,
                remote,
                imm,
                ..
            } = wr;
            let opcode = match wr.op {
                Op::Write => 0,
                Op::WriteImm => 1,
                Op::Send => 2,
                Op::SendImm => 3,
                Op::Read => 4,
            };
            format!(
                "post_send {opcode} {wr_id} {} {} {} {} {} {imm} 0 0",
                local.offset, local.len, local.parts, remote.addr, remote.rkey
            )
        };
        self.all(&list.iter().map(command).collect::<Vec<_>>())?;
        Ok(())
    }

    fn post_atomics(&mut self, list: &[AtomicWr]) -> Result<()> {
        let command = |wr: &AtomicWr| {
            let AtomicWr {
                wr_id, local, remote, ..
            } = wr;
            let (opcode, compare_add, swap) = match wr.atomic {
                Atomic::CompareSwap { compare, swap } => (5, compare, swap),
                Atomic::FetchAdd { add } => (6, add, 0),
            };
            format!(
                "post_send {opcode} {wr_id} {local} 8 1 {} {} 0 {compare_add} {swap}",
                remote.addr, remote.rkey
            )
        };
        self.all(&list.iter().map(command).collect::<Vec<_>>())?;
        Ok(())
    }

    fn poke(&mut self, offset: usize, value: u64) -> Result<()> {
        self.one(format!("poke {offset} {value}"))?;
        Ok(())
    }

    fn peek(&mut self, offset: usize) -> Result<u64> {
        Ok(self.one(format!("peek {offset}"))?.parse()?)
    }

    fn poll(&mut self, count: usize, limit: Duration) -> Result<Vec<Completion>> {
        let command = format!("poll {count} {}", limit.as_millis());
        let answer = self
            .ask(&[command], limit + COMMAND)?
            .pop()
            .context("an answer")?;
        let answer = answer.map_err(|why| anyhow::anyhow!("rxe: poll: {why}"))?;
        answer.split_whitespace().map(completion).collect()
    }

    fn close(&mut self) -> Result<()> {
        self.one("close".into())?;
        Ok(())
    }
}

fn hex(gid: Gid) -> String {
    gid.0.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An image as `verbs-peer` takes it.
fn words(image: &Image) -> String {
    let at = image.slot.data(image.misaligned) - image.slot.start;
    format!(
        "{} {} {at} {} {}",
        image.slot.start, image.slot.size, image.len, image.seed
    )
}

/// A completion as `verbs-peer` prints it, with the numbers of `ibv_wc_opcode` and `ibv_wc_flags`.
fn completion(text: &str) -> Result<Completion> {
    let numbers: Vec<u64> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let &[wr_id, status, opcode, byte_len, flags, imm] = numbers.as_slice() else {
        bail!("{text:?} is no completion");
    };
    let opcode = match opcode {
        0 => Opcode::Send,
        1 => Opcode::Write,
        2 => Opcode::Read,
        3 => Opcode::CompareSwap,
        4 => Opcode::FetchAdd,
        128 => Opcode::Recv,
        129 => Opcode::RecvWriteImm,
        other => Opcode::Other(other as u8),
    };
    const WITH_IMM: u64 = 1 << 1;
    Ok(Completion {
        wr_id,
        status: if status == 0 {
            Status::Success
        } else {
            Status::Other(status as u8)
        },
        opcode,
        is_recv: matches!(opcode, Opcode::Recv | Opcode::RecvWriteImm),
        byte_len: byte_len as u32,
        imm: (flags & WITH_IMM != 0).then_some(imm as u32),
        ..Completion::default()
    })
}
