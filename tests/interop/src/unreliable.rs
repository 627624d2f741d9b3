//! One test: messages of a service that may lose them, on a wire that does.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic::{Completion, Mtu};
use rnic_tests::probe::{Op, Rng, Slot};

use crate::end::{End, Image, Range, RecvWr, Resources, SendWr, Service};
use crate::exchange::{LINGER, Moved, PATIENCE, Side, connect};
use crate::wire::Family;

/// Messages, and receives, at a time.
const WINDOW: usize = 16;
const ROUNDS: usize = 4;
/// Silence after which nothing more is on its way.
const SILENCE: Duration = Duration::from_millis(200);

/// Messages with immediate data, which says which of them has arrived. Those that have must be whole, and on a wire that
/// only loses each comes once, in order.
#[derive(Clone, Debug)]
pub struct Unreliable {
    /// UC.
    pub service: Service,
    /// SEND or WRITE with immediate.
    pub op: Op,
    /// Who sends: 0 ours, 1 theirs.
    pub sender: usize,
    /// Addresses used.
    pub family: Family,
    /// Path MTU.
    pub mtu: Mtu,
    /// The wire repeats frames or changes their order, which the service does not mend.
    pub disorder: bool,
    /// Of the data.
    pub seed: u64,
}

impl Unreliable {
    /// Carries it out between our end and theirs.
    pub fn run(&self, ours: &mut dyn End, theirs: &mut dyn End) -> Result<Moved> {
        let max = 3 * self.mtu.bytes() as usize;
        let resources = Resources {
            service: self.service,
            family: self.family,
            memory: 3 * WINDOW * Slot::size(max),
            depth: WINDOW as u32,
        };
        let mut sides = connect(ours, theirs, &resources, self.mtu)?;
        let mut rng = Rng::new(&[self.seed]);
        let slot = |area: usize, at: usize| Slot::new(area * WINDOW + at, max);
        // Slots of the receives posted, in their order.
        let mut posted = VecDeque::new();
        let mut free: Vec<usize> = (0..WINDOW).collect();
        let mut moved = Moved::default();
        for round in 0..ROUNDS {
            // All of a round are as long, so that what is left of a message given up is covered by the next one.
            let len = [1, self.mtu.bytes() as usize, max - 5][round % 3];
            let images: Vec<_> = (0..WINDOW)
                .map(|i| Image {
                    slot: slot(0, i),
                    misaligned: i,
                    len,
                    seed: rng.next(),
                })
                .collect();
            let [sender, receiver] = self.split(&mut sides);
            sender.end.fill(&images)?;
            let empty = |slot| Image {
                slot,
                misaligned: 0,
                len: 0,
                seed: 0,
            };
            let blank: Vec<_> = (WINDOW..3 * WINDOW).map(|at| empty(Slot::new(at, max))).collect();
            receiver.end.fill(&blank)?;
            let receives: Vec<_> = free
                .drain(..)
                .map(|at| RecvWr {
                    wr_id: at as u64,
                    local: Range {
                        offset: slot(1, at).data(0),
                        len: max,
                        parts: 1,
                    },
                })
                .collect();
            receiver.end.post_recv(&receives)?;
            posted.extend(receives.iter().map(|receive| receive.wr_id as usize));
            let sends: Vec<_> = (0..WINDOW)
                .map(|i| SendWr {
                    wr_id: i as u64,
                    op: self.op,
                    local: Range {
                        offset: slot(0, i).data(i),
                        len,
                        parts: 2,
                    },
                    remote: sender.remote.at(slot(2, i).data(0) as u64),
                    imm: i as u32,
                })
                .collect();
            sender.end.post_send(&sends)?;
            all_sent(sender.end).with_context(|| format!("round {round}: {}", sender.end.name()))?;
            let received = receiver.end.poll(posted.len(), SILENCE)?;
            let due = self
                .placed(&received, &mut posted, len)
                .with_context(|| format!("round {round}: {}", receiver.end.name()))?;
            let wanted: Vec<_> = due
                .iter()
                .map(|(message, at)| Image {
                    slot: if self.op == Op::WriteImm {
                        slot(2, *message)
                    } else {
                        slot(1, *at)
                    },
                    misaligned: 0,
                    ..images[*message]
                })
                .collect();
            for ((message, _), found) in due.iter().zip(receiver.end.check(&wanted)?) {
                found.map_err(|why| anyhow::anyhow!("round {round}, message {message}: {why}"))?;
            }
            free.extend(due.iter().map(|(_, at)| *at));
            moved.messages += due.len() as u64;
            moved.bytes += (due.len() * len) as u64;
        }
        ensure!(
            moved.messages > 0,
            "nothing has arrived of {} messages",
            ROUNDS * WINDOW
        );
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

    fn split<'s, 'e>(&self, sides: &'s mut [Side<'e>; 2]) -> [&'s mut Side<'e>; 2] {
        let [ours, theirs] = sides;
        if self.sender == 0 {
            [ours, theirs]
        } else {
            [theirs, ours]
        }
    }

    /// Which message has arrived by which receive.
    fn placed(
        &self,
        received: &[Completion],
        posted: &mut VecDeque<usize>,
        len: usize,
    ) -> Result<Vec<(usize, usize)>> {
        let mut placed: Vec<(usize, usize)> = Vec::new();
        for completion in received {
            let completion = completion.ok()?;
            let at = posted.pop_front();
            ensure!(
                completion.is_recv && Some(completion.wr_id as usize) == at,
                "receive {at:?} is due: {completion:?}"
            );
            let message = completion.imm.map_or(WINDOW, |imm| imm as usize);
            ensure!(
                message < WINDOW && completion.byte_len as usize == len,
                "no message of this round, of {len} bytes: {completion:?}"
            );
            let in_order = placed.last().is_none_or(|(before, _)| *before < message);
            ensure!(
                in_order || self.disorder,
                "message {message} comes after {:?}",
                placed.last()
            );
            placed.push((message, completion.wr_id as usize));
        }
        Ok(placed)
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
