//! One of the two clients.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic::exchange::Exchange;
use rnic::{
    Access, Completion, ConnectOptions, Context, Cq, Endpoint, Mr, MrSlice, Mtu, Opcode, Pd, Qp, QpConfig,
    RemoteMr,
};
use serde::{Deserialize, Serialize};

use super::data::Slot;
use super::plan::{INLINE_MAX, Message};
use super::{Op, Plan, Report};

/// How long a round may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// `wr_id` of the empty SEND that ends a round: after it, everything before it has been delivered.
const LAST: u64 = u64::MAX;

/// The peers' memory that an operation can reach.
#[derive(Copy, Clone, Serialize, Deserialize)]
struct Targets {
    written: RemoteMr,
    read: RemoteMr,
}

struct Peer<'a> {
    plan: &'a Plan,
    side: u64,
    pd: Pd,
    cq: Cq,
    /// Source of our SENDs and WRITEs.
    source: Mr,
    /// Receives.
    inbox: Mr,
    /// The peer WRITEs here,
    written: Mr,
    /// and READs here.
    read: Mr,
    /// Where our READs go.
    fetched: Mr,
    theirs: Targets,
}

/// Carries out `plan` as side 0 (server) or 1, with the peer at the other end of `exchange`. Calls `report` after
/// each round; `more` tells, for an endless plan, whether to go on.
pub fn run(
    context: &Context,
    plan: &Plan,
    side: u64,
    exchange: &mut Exchange,
    mut more: impl FnMut() -> bool,
    mut report: impl FnMut(&Report) -> Result<()>,
) -> Result<Report> {
    exchange.set_timeout(Some(PATIENCE))?;
    let mut peer = Peer::new(context, plan, side, exchange)?;
    let mut seen = Report {
        device: context.attr().name.clone(),
        gid: context.gid(plan.gid_index)?.gid.ip().to_string(),
        ..Report::default()
    };
    for mtu in peer.mtus(context, exchange)? {
        let qp = peer
            .connect(mtu, exchange)
            .with_context(|| format!("connecting at path MTU {mtu}"))?;
        let ours = plan.rounds(mtu, side);
        let theirs = plan.rounds(mtu, 1 - side);
        let rounds = ours.iter().zip(&theirs);
        let mut endless = rounds.clone().cycle();
        let mut finite = rounds;
        loop {
            let round = if plan.endless {
                endless.next()
            } else {
                finite.next()
            };
            let Some((ours, theirs)) = round else { break };
            peer.round(&qp, ours, theirs, exchange, &mut seen)
                .with_context(|| format!("path MTU {mtu}, round {}", seen.rounds))?;
            seen.rounds += 1;
            if plan.endless {
                report(&seen)?;
                // Both take the same two answers, so both end after the same round.
                let ours = more();
                let theirs: bool = exchange.swap(&ours)?;
                if !(ours && theirs) {
                    break;
                }
            }
        }
        seen.mtus.push(mtu);
        // Neither goes away while the other may still need an answer.
        exchange.barrier()?;
        qp.destroy()?;
    }
    exchange.barrier()?;
    Ok(seen)
}

impl<'a> Peer<'a> {
    fn new(context: &Context, plan: &'a Plan, side: u64, exchange: &mut Exchange) -> Result<Peer<'a>> {
        let pd = context.alloc_pd()?;
        let cq = context.create_cq(4 * plan.window as u32 + 16)?;
        let region = |access| pd.alloc_mr(plan.window.max(1) * Slot::size(plan.size_max), access);
        let written = region(Access::LOCAL_WRITE | Access::REMOTE_WRITE)?;
        let read = region(Access::REMOTE_READ)?;
        let theirs = exchange.swap(&Targets {
            written: written.remote(),
            read: read.remote(),
        })?;
        Ok(Peer {
            plan,
            side,
            source: region(Access::NONE)?,
            inbox: region(Access::LOCAL_WRITE)?,
            fetched: region(Access::LOCAL_WRITE)?,
            written,
            read,
            theirs,
            pd,
            cq,
        })
    }

    /// The path MTUs to go through: the plan's, or all that both ports allow.
    fn mtus(&self, context: &Context, exchange: &mut Exchange) -> Result<Vec<u32>> {
        let ours = context.query_port()?.active_mtu.bytes();
        let theirs: u32 = exchange.swap(&ours)?;
        if self.plan.mtus.is_empty() {
            return Ok([256, 512, 1024, 2048, 4096]
                .into_iter()
                .filter(|m| *m <= ours.min(theirs))
                .collect());
        }
        Ok(self.plan.mtus.clone())
    }

    fn connect(&self, mtu: u32, exchange: &mut Exchange) -> Result<Qp> {
        let config = QpConfig::new(&self.cq, &self.cq)
            .max_send_wr(self.plan.window as u32 + 1)
            .max_recv_wr(self.plan.window as u32 + 1)
            .max_sge(3)
            .max_inline(INLINE_MAX as u32);
        let qp = self.pd.create_qp(config)?;
        let options = ConnectOptions {
            mtu: Some(Mtu::from_bytes(mtu)?),
            gid_index: self.plan.gid_index,
            timeout: self.plan.timeout,
            ..ConnectOptions::default()
        };
        let peer: Endpoint = exchange.swap(&qp.endpoint(&options)?)?;
        qp.connect(&peer, &options)?;
        let path = qp.query()?.path_mtu.map(Mtu::bytes);
        ensure!(path == Some(mtu), "the QP's path MTU is {path:?}");
        Ok(qp)
    }

    fn slot(&self, index: usize) -> Slot {
        Slot::new(index, self.plan.size_max)
    }

    fn round(
        &mut self,
        qp: &Qp,
        ours: &[Message],
        theirs: &[Message],
        exchange: &mut Exchange,
        seen: &mut Report,
    ) -> Result<()> {
        for (i, message) in ours.iter().enumerate() {
            self.slot(i).fill(&self.source, message.local, &message.data());
            self.slot(i).fill(&self.fetched, 0, &[]);
        }
        for (i, message) in theirs.iter().enumerate() {
            self.slot(i).fill(&self.inbox, 0, &[]);
            self.slot(i).fill(&self.written, 0, &[]);
            let readable = if message.op == Op::Read {
                message.data()
            } else {
                Vec::new()
            };
            self.slot(i).fill(&self.read, message.remote, &readable);
        }
        self.post_receives(qp, theirs)?;
        exchange.barrier()?;
        self.post(qp, ours)?;
        self.complete(ours, theirs)?;
        exchange.barrier()?;
        let [ours_right, theirs_right] = [self.verify_ours(ours), self.verify_theirs(theirs)];
        seen.messages += (ours.len() + theirs.len()) as u64;
        seen.bytes += ours_right? + theirs_right?;
        Ok(())
    }

    fn post_receives(&self, qp: &Qp, theirs: &[Message]) -> Result<()> {
        qp.post_recv(|batch| {
            for (i, message) in theirs.iter().enumerate().filter(|(_, m)| m.op.consumes()) {
                let room = if message.op == Op::WriteImm {
                    32
                } else {
                    message.len + message.spare
                };
                let room = room.min(self.plan.size_max);
                let place = self.slot(i).data(message.remote);
                let list = cut(&self.inbox, place, room, message.remote_parts);
                batch.recv(list).wr_id(i as u64);
            }
            batch.recv([]).wr_id(LAST);
        })?;
        Ok(())
    }

    fn post(&self, qp: &Qp, ours: &[Message]) -> Result<()> {
        qp.post(|batch| {
            for (i, message) in ours.iter().enumerate() {
                let id = i as u64;
                let place = self.slot(i).data(message.local);
                let there = self.slot(i).data(message.remote) as u64;
                let list = cut(&self.source, place, message.len, message.local_parts);
                let inline = (message.inline && message.len <= INLINE_MAX).then(|| message.data());
                match message.op {
                    Op::Send | Op::SendImm => {
                        let wr = match &inline {
                            Some(data) => batch.send_inline(data),
                            None => batch.send(list),
                        };
                        let wr = wr.wr_id(id).signaled();
                        if message.op == Op::SendImm {
                            wr.imm(message.imm).solicited();
                        }
                    }
                    Op::Write | Op::WriteImm => {
                        let target = self.theirs.written.at(there);
                        let wr = match &inline {
                            Some(data) => batch.write_inline(data, target),
                            None => batch.write(list, target),
                        };
                        let wr = wr.wr_id(id).signaled();
                        if message.op == Op::WriteImm {
                            wr.imm(message.imm);
                        }
                    }
                    Op::Read => {
                        let list = cut(&self.fetched, place, message.len, message.local_parts);
                        batch.read(list, self.theirs.read.at(there)).wr_id(id).signaled();
                    }
                }
            }
            batch.send([]).wr_id(LAST).signaled();
        })?;
        Ok(())
    }

    /// Waits for the completions of a round, which must come in order on either queue.
    fn complete(&self, ours: &[Message], theirs: &[Message]) -> Result<()> {
        let mut sends: VecDeque<_> = ours.iter().enumerate().collect();
        let mut receives: VecDeque<_> = theirs
            .iter()
            .enumerate()
            .filter(|(_, m)| m.op.consumes())
            .collect();
        let (mut sent, mut received) = (false, false);
        let end = Instant::now() + PATIENCE;
        while !(sent && received) {
            let left = end.saturating_duration_since(Instant::now());
            let completions = self.cq.wait_vec(16, Some(left))?;
            if completions.is_empty() {
                bail!(
                    "no completion in {PATIENCE:?}: {} sends and {} receives are outstanding",
                    sends.len() + usize::from(!sent),
                    receives.len() + usize::from(!received)
                );
            }
            for completion in completions {
                let completion = completion.ok()?;
                let (queue, last) = if completion.is_recv {
                    (&mut receives, &mut received)
                } else {
                    (&mut sends, &mut sent)
                };
                match queue.pop_front() {
                    Some((i, message)) => check(&completion, i as u64, message)?,
                    None if completion.wr_id == LAST && !*last => *last = true,
                    None => bail!("a completion too many: {completion:?}"),
                }
            }
        }
        Ok(())
    }

    fn verify_ours(&self, ours: &[Message]) -> Result<u64> {
        let mut bytes = 0;
        for (i, message) in ours.iter().enumerate() {
            let wanted = if message.op == Op::Read {
                message.data()
            } else {
                Vec::new()
            };
            self.compare(&self.fetched, i, message, message.local, &wanted, "fetched by us")?;
            bytes += wanted.len() as u64;
        }
        Ok(bytes)
    }

    fn verify_theirs(&self, theirs: &[Message]) -> Result<u64> {
        let mut bytes = 0;
        for (i, message) in theirs.iter().enumerate() {
            let data = message.data();
            let (mut sent, mut written) = (&[][..], &[][..]);
            match message.op {
                Op::Send | Op::SendImm => sent = &data,
                Op::Write | Op::WriteImm => written = &data,
                Op::Read => {}
            }
            self.compare(&self.inbox, i, message, message.remote, sent, "received")?;
            self.compare(
                &self.written,
                i,
                message,
                message.remote,
                written,
                "written by the peer",
            )?;
            bytes += (sent.len() + written.len()) as u64;
        }
        Ok(bytes)
    }

    fn compare(
        &self,
        region: &Mr,
        slot: usize,
        message: &Message,
        misaligned: usize,
        wanted: &[u8],
        what: &str,
    ) -> Result<()> {
        self.slot(slot)
            .compare(region, misaligned, wanted)
            .map_err(|why| {
                let (op, len, side) = (message.op, message.len, self.side);
                anyhow::anyhow!("side {side}, message {slot} ({op:?} of {len} bytes), memory {what}: {why}")
            })
    }
}

/// Compares a completion with the one due for `message`.
pub fn check(completion: &Completion, id: u64, message: &Message) -> Result<()> {
    let wanted = match (completion.is_recv, message.op) {
        (true, Op::WriteImm) => Opcode::RecvWriteImm,
        (true, _) => Opcode::Recv,
        (false, Op::Send | Op::SendImm) => Opcode::Send,
        (false, Op::Write | Op::WriteImm) => Opcode::Write,
        (false, Op::Read) => Opcode::Read,
    };
    ensure!(
        completion.wr_id == id,
        "completion of {} where {id} was due: {completion:?}",
        completion.wr_id
    );
    ensure!(
        completion.opcode == wanted,
        "{completion:?} instead of {wanted:?}"
    );
    if completion.is_recv {
        let imm = message.op.has_imm().then_some(message.imm);
        ensure!(
            completion.imm == imm,
            "{completion:?}: the immediate is not {imm:?}"
        );
    }
    if completion.is_recv || message.op == Op::Read {
        ensure!(
            completion.byte_len as usize == message.len,
            "{completion:?}: not {} bytes",
            message.len
        );
    }
    Ok(())
}

/// `len` bytes of `region` from `start` on, in up to `parts` pieces.
pub fn cut(region: &Mr, start: usize, len: usize, parts: usize) -> Vec<MrSlice> {
    let piece = len.div_ceil(parts).max(1);
    (0..len)
        .step_by(piece)
        .map(|at| region.slice(start + at..start + (at + piece).min(len)))
        .collect()
}
