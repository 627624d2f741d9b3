//! One test: messages of a service that may lose them.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic::{Completion, Mtu};
use rnic_tests::probe::{Op, Rng, Slot};

use crate::end::{End, GRH_AREA, Image, Range, RecvWr, Resources, SendWr, Service};
use crate::exchange::{LINGER, Moved, PATIENCE, Side, connect};
use crate::wire::Family;

/// Messages, and receives, at a time.
const WINDOW: usize = 16;
const ROUNDS: usize = 4;
/// Silence after which nothing more is on its way.
const SILENCE: Duration = Duration::from_millis(200);

/// Parts of the memory region, each with a slot a message, or a receive.
#[derive(Copy, Clone)]
enum Area {
    /// What is sent and written.
    Source,
    /// Receives.
    Inbox,
    /// The peer WRITEs here.
    Written,
}

/// Messages, of which immediate data says which of them has arrived; of a SEND without, its length does. Those that have must
/// be whole, and on a wire that only loses each comes once, in order; to our UC QP they do so on any wire. Of a WRITE without
/// immediate data nobody is told: of each the first packets are there, unharmed, and nothing else is.
#[derive(Clone, Debug)]
pub struct Unreliable {
    /// UC or UD.
    pub service: Service,
    /// SEND or WRITE, with immediate data or without. Datagrams have it.
    pub op: Op,
    /// Who sends: 0 ours, 1 theirs.
    pub sender: usize,
    /// Addresses used.
    pub family: Family,
    /// Path MTU.
    pub mtu: Mtu,
    /// The wire loses nothing, so all of them arrive.
    pub whole: bool,
    /// The wire repeats frames or changes their order, which the service does not mend.
    pub disorder: bool,
    /// Of the data.
    pub seed: u64,
}

/// Receives of the receiver, by their slots.
struct Receives {
    /// Posted, in their order.
    posted: VecDeque<usize>,
    /// To be posted.
    free: Vec<usize>,
}

impl Unreliable {
    /// Carries it out between our end and theirs.
    pub fn run(&self, ours: &mut dyn End, theirs: &mut dyn End) -> Result<Moved> {
        let resources = Resources {
            service: self.service,
            family: self.family,
            memory: 3 * WINDOW * Slot::size(self.max()),
            depth: WINDOW as u32,
            shared: false,
        };
        let mut sides = connect(ours, theirs, &resources, self.mtu)?;
        let mut rng = Rng::new(&[self.seed]);
        let mut receives = Receives {
            posted: VecDeque::new(),
            free: (0..WINDOW).collect(),
        };
        let mut moved = Moved::default();
        for round in 0..ROUNDS {
            // All of a round are as long, so that what is left of a message given up is covered by the next one.
            let len = [1, self.mtu.bytes() as usize, self.max() - WINDOW - 5][round % 3];
            let [ours, theirs] = &mut sides;
            let [sender, receiver] = if self.sender == 0 {
                [ours, theirs]
            } else {
                [theirs, ours]
            };
            let arrived = self
                .round(
                    sender,
                    receiver,
                    &mut receives,
                    ((round * WINDOW) as u32, len),
                    &mut rng,
                )
                .with_context(|| format!("round {round}"))?;
            moved.messages += arrived;
            moved.bytes += arrived * len as u64;
        }
        let all = (ROUNDS * WINDOW) as u64;
        let enough = if self.whole {
            moved.messages == all
        } else {
            moved.messages > 0
        };
        ensure!(enough, "{} of {all} messages have arrived", moved.messages);
        for side in &mut sides {
            let more = side.end.poll(1, LINGER)?;
            ensure!(
                more.is_empty(),
                "{}: a completion too many: {more:?}",
                side.end.name()
            );
            side.end.close()?;
        }
        Ok(moved)
    }

    /// Bytes of the longest message.
    fn max(&self) -> usize {
        let packets = if self.service == Service::Ud { 1 } else { 3 };
        packets * self.mtu.bytes() as usize
    }

    /// Bytes of a message in a round of `len`. SENDs without immediate data grow, so that what is left of one given up is
    /// covered by the next one here, too.
    fn len_of(&self, len: usize, message: usize) -> usize {
        match self.op {
            Op::Send => len + message,
            _ => len,
        }
    }

    fn slot(&self, area: Area, at: usize) -> Slot {
        Slot::new(area as usize * WINDOW + at, self.max())
    }

    /// Bytes in front of a message where it is received; they lie among the guards.
    fn grh(&self) -> usize {
        if self.service == Service::Ud { GRH_AREA } else { 0 }
    }

    /// Sends messages of `len` bytes, of which the first has the number `first`; returns how many have arrived.
    fn round(
        &self,
        sender: &mut Side<'_>,
        receiver: &mut Side<'_>,
        receives: &mut Receives,
        (first, len): (u32, usize),
        rng: &mut Rng,
    ) -> Result<u64> {
        let seeds: Vec<_> = (0..WINDOW).map(|_| rng.next()).collect();
        let message = |slot, i: usize| Image {
            slot,
            misaligned: 0,
            len: self.len_of(len, i),
            seed: seeds[i],
        };
        let sent: Vec<_> = (0..WINDOW)
            .map(|i| message(self.slot(Area::Source, i), i))
            .collect();
        sender.end.fill(&sent)?;
        let areas = [Area::Inbox, Area::Written];
        let blank = areas
            .iter()
            .flat_map(|area| (0..WINDOW).map(|i| guards(self.slot(*area, i))));
        receiver.end.fill(&blank.collect::<Vec<_>>())?;

        self.post_receives(receiver.end, receives)?;
        let sends = (0..WINDOW).map(|i| SendWr {
            wr_id: i as u64,
            op: self.op,
            local: Range {
                offset: self.slot(Area::Source, i).data(0),
                len: self.len_of(len, i),
                parts: 2,
            },
            remote: sender.remote.at(self.slot(Area::Written, i).data(0) as u64),
            imm: first + i as u32,
        });
        let sends: Vec<_> = sends.collect();
        sender.end.post_send(&sends)?;
        all_sent(sender.end).with_context(|| sender.end.name())?;

        if self.op == Op::Write {
            let slots = (0..WINDOW).map(|i| message(self.slot(Area::Written, i), i));
            return self.written(receiver.end, &slots.collect::<Vec<_>>());
        }
        let completions = receiver.end.poll(receives.posted.len(), SILENCE)?;
        let arrived = self
            .arrived(&completions, receives, (first, len))
            .with_context(|| receiver.end.name())?;
        // What the GRH area says is not what this is about.
        let grhs = arrived.iter().map(|(_, at)| {
            let slot = self.slot(Area::Inbox, *at);
            let size = slot.data(0) - slot.start;
            guards(Slot { size, ..slot })
        });
        receiver.end.fill(&grhs.collect::<Vec<_>>())?;
        let due = arrived.iter().map(|(i, at)| match self.op {
            Op::WriteImm => message(self.slot(Area::Written, *i), *i),
            _ => message(self.slot(Area::Inbox, *at), *i),
        });
        let due: Vec<_> = due.collect();
        for ((i, _), found) in arrived.iter().zip(receiver.end.check(&due)?) {
            found.map_err(|why| anyhow::anyhow!("{}: message {i}: {why}", receiver.end.name()))?;
        }
        Ok(arrived.len() as u64)
    }

    /// How many WRITEs are there as a whole. Of the others it is the packets before the first one lost, and guards.
    fn written(&self, end: &mut dyn End, messages: &[Image]) -> Result<u64> {
        let told = end.poll(1, SILENCE)?;
        ensure!(told.is_empty(), "{}: told of a WRITE: {told:?}", end.name());
        let mut left: Vec<(usize, Image)> = messages.iter().copied().enumerate().collect();
        let mut whole = 0;
        let packets = messages[0].len.div_ceil(self.mtu.bytes() as usize);
        for count in (0..=packets).rev() {
            let part = |(_, image): &(usize, Image)| Image {
                len: image.len.min(count * self.mtu.bytes() as usize),
                ..*image
            };
            let parts: Vec<Image> = left.iter().map(part).collect();
            let mut found = end.check(&parts)?.into_iter();
            let before = left.len();
            left.retain(|_| found.next().is_some_and(|found| found.is_err()));
            if count == packets {
                whole = before - left.len();
            }
        }
        match left.first() {
            None => Ok(whole as u64),
            Some((message, _)) => bail!(
                "{}: what was written of message {message} is not its first packets",
                end.name()
            ),
        }
    }

    fn post_receives(&self, end: &mut dyn End, receives: &mut Receives) -> Result<()> {
        let list = receives.free.drain(..).map(|at| RecvWr {
            wr_id: at as u64,
            local: Range {
                offset: self.slot(Area::Inbox, at).data(0) - self.grh(),
                len: self.grh() + self.max(),
                parts: 1,
            },
        });
        let list: Vec<_> = list.collect();
        receives.posted.extend(list.iter().map(|wr| wr.wr_id as usize));
        end.post_recv(&list)
    }

    /// Which messages have arrived, and by which receives.
    fn arrived(
        &self,
        completions: &[Completion],
        receives: &mut Receives,
        (first, len): (u32, usize),
    ) -> Result<Vec<(usize, usize)>> {
        let mut arrived: Vec<(usize, usize)> = Vec::new();
        for completion in completions {
            let completion = completion.ok()?;
            let at = receives.posted.pop_front().context("a receive too many")?;
            ensure!(
                completion.is_recv && completion.wr_id == at as u64,
                "receive {at} is due: {completion:?}"
            );
            let late = completion.imm.is_some_and(|imm| imm < first);
            if late && self.disorder && self.service == Service::Ud {
                // A datagram may be held up for as long as it takes: one of a round before was given up then.
                receives.free.push(at);
                continue;
            }
            let bytes = (completion.byte_len as usize).wrapping_sub(self.grh());
            let message = match self.op {
                Op::Send => bytes.wrapping_sub(len),
                _ => completion
                    .imm
                    .map_or(WINDOW, |imm| imm.wrapping_sub(first) as usize),
            };
            ensure!(
                message < WINDOW && bytes == self.len_of(len, message),
                "no message of this round, of {len} bytes: {completion:?}"
            );
            let before = arrived.last().map(|(before, _)| *before);
            // Our UC QP delivers nothing twice or late, whatever the wire does.
            let ordered = !self.disorder || self.service == Service::Uc && self.sender == 1;
            ensure!(
                before < Some(message) || !ordered,
                "message {message} comes after {before:?}"
            );
            arrived.push((message, at));
            receives.free.push(at);
        }
        Ok(arrived)
    }
}

/// Nothing but guards.
fn guards(slot: Slot) -> Image {
    Image {
        slot,
        misaligned: 0,
        len: 0,
        seed: 0,
    }
}

/// A sender is done with a message when it has sent it.
fn all_sent(end: &mut dyn End) -> Result<()> {
    let (mut sent, deadline) = (0, Instant::now() + PATIENCE);
    while sent < WINDOW {
        for completion in end.poll(WINDOW - sent, Duration::from_secs(5))? {
            let completion = completion.ok()?;
            ensure!(
                !completion.is_recv && completion.wr_id == sent as u64,
                "send {sent} is due: {completion:?}"
            );
            sent += 1;
        }
        if sent < WINDOW && Instant::now() > deadline {
            bail!(
                "{} of {WINDOW} messages are not sent after {PATIENCE:?}",
                WINDOW - sent
            );
        }
    }
    Ok(())
}
