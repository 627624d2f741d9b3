//! One test: requests of one or both ends, carried out by the other, with every byte and completion checked.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic::{Mtu, RemoteMr};
use rnic_tests::probe::{Message, Op, Plan, Slot, check};

use crate::end::{End, Image, Range, RecvWr, Resources, SendWr, Service};
use crate::wire::Family;

/// How long a round may take; beyond it, the test has hung.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait for completions at a time.
const LOOK: Duration = Duration::from_secs(5);
/// `wr_id` of the empty SEND that ends a round: after it, everything before it has been delivered.
const LAST: u64 = u64::MAX;
/// How long a wire may hold a frame back.
pub const LINGER: Duration = Duration::from_millis(20);
/// `wr_id` of a receive for which nothing is sent: a message delivered twice would take it.
const SPARE: u64 = u64::MAX - 1;

/// Parts of the memory region, each with a slot a message of a round.
#[derive(Copy, Clone)]
enum Area {
    /// What our requests send and write.
    Source,
    /// Receives.
    Inbox,
    /// The peer WRITEs here,
    Written,
    /// and READs here.
    Read,
    /// Where our READs go.
    Fetched,
}

/// What is exchanged.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Service type; one that loses messages needs a wire that does not.
    pub service: Service,
    /// Operations, sizes and data.
    pub plan: Plan,
    /// Which ends make requests: ours, theirs.
    pub requester: [bool; 2],
    /// Addresses used.
    pub family: Family,
    /// Path MTU.
    pub mtu: Mtu,
    /// Both ends receive by SRQs.
    pub shared: bool,
}

/// What an exchange has moved.
#[derive(Copy, Clone, Debug, Default)]
pub struct Moved {
    /// Requests carried out.
    pub messages: u64,
    /// Bytes compared.
    pub bytes: u64,
}

/// An end that is connected.
pub struct Side<'a> {
    /// The end.
    pub end: &'a mut dyn End,
    /// The other end's memory.
    pub remote: RemoteMr,
}

/// Makes everything anew at both ends, and connects them.
pub fn connect<'a>(
    ours: &'a mut dyn End,
    theirs: &'a mut dyn End,
    resources: &Resources,
    mtu: Mtu,
) -> Result<[Side<'a>; 2]> {
    let (our_endpoint, our_memory) = ours.open(resources).context("rnic: opening")?;
    let (their_endpoint, their_memory) = theirs.open(resources).context("rxe: opening")?;
    ours.connect(&their_endpoint, mtu).context("rnic: connecting")?;
    theirs.connect(&our_endpoint, mtu).context("rxe: connecting")?;
    let side = |end, remote| Side { end, remote };
    Ok([side(ours, their_memory), side(theirs, our_memory)])
}

impl Exchange {
    /// Carries it out between our end and theirs.
    pub fn run(&self, ours: &mut dyn End, theirs: &mut dyn End) -> Result<Moved> {
        // A request and a receive for each message, for the one that ends a round, and one to spare.
        let resources = Resources {
            service: self.service,
            family: self.family,
            memory: 5 * self.plan.window * Slot::size(self.plan.size_max),
            depth: self.plan.window as u32 + 2,
            shared: self.shared,
        };
        let mut sides = connect(ours, theirs, &resources, self.mtu)?;
        let rounds = [0, 1].map(|side| match self.requester[side] {
            true => self.plan.rounds(self.mtu.bytes(), side as u64),
            false => Vec::new(),
        });
        let mut moved = Moved::default();
        for number in 0..rounds[0].len().max(rounds[1].len()) {
            let round = [0, 1].map(|side| rounds[side].get(number).map_or(&[][..], Vec::as_slice));
            self.round(&mut sides, round, &mut moved)
                .with_context(|| format!("round {number}"))?;
        }
        let local = Range::EMPTY;
        for Side { end, .. } in &mut sides {
            end.post_recv(&[RecvWr { wr_id: SPARE, local }])?;
        }
        for Side { end, .. } in &mut sides {
            let more = end.poll(1, LINGER)?;
            ensure!(more.is_empty(), "{}: a completion too many: {more:?}", end.name());
        }
        for Side { end, .. } in &mut sides {
            end.close().with_context(|| format!("{}: closing", end.name()))?;
        }
        Ok(moved)
    }

    fn slot(&self, area: Area, message: usize) -> Slot {
        Slot::new(area as usize * self.plan.window + message, self.plan.size_max)
    }

    /// `messages[side]` are the requests of that side.
    fn round(&self, sides: &mut [Side<'_>; 2], messages: [&[Message]; 2], moved: &mut Moved) -> Result<()> {
        for side in [0, 1] {
            let [ours, theirs] = [messages[side], messages[1 - side]];
            let images: Vec<_> = self
                .before(ours, theirs)
                .into_iter()
                .map(|(_, _, image)| image)
                .collect();
            sides[side].end.fill(&images)?;
            self.post_receives(sides[side].end, theirs)?;
        }
        for side in [0, 1] {
            self.post(&mut sides[side], messages[side])?;
        }
        let deadline = Instant::now() + PATIENCE;
        for side in [0, 1] {
            let [ours, theirs] = [messages[side], messages[1 - side]];
            let Side { end, .. } = &mut sides[side];
            complete(*end, ours, theirs, deadline).with_context(|| format!("{}: completions", end.name()))?;
        }
        for side in [0, 1] {
            let [ours, theirs] = [messages[side], messages[1 - side]];
            let (named, images): (Vec<_>, Vec<_>) = self
                .after(ours, theirs)
                .into_iter()
                .map(|(what, message, image)| ((what, message), image))
                .unzip();
            let Side { end, .. } = &mut sides[side];
            for (((what, message), image), found) in named.iter().zip(&images).zip(end.check(&images)?) {
                let Message { op, len, .. } = message;
                found.map_err(|why| {
                    anyhow::anyhow!("{}: memory {what}, {op:?} of {len} bytes: {why}", end.name())
                })?;
                moved.bytes += image.len as u64;
            }
            moved.messages += ours.len() as u64;
        }
        Ok(())
    }

    /// Memory of a side before a round: `ours` are its own requests, `theirs` the peer's.
    fn before<'m>(
        &self,
        ours: &'m [Message],
        theirs: &'m [Message],
    ) -> Vec<(&'static str, &'m Message, Image)> {
        let mut images = Vec::new();
        for (i, message) in ours.iter().enumerate() {
            images.push((
                "to send",
                message,
                self.image(Area::Source, i, message.local, Some(message)),
            ));
            images.push(("to fetch", message, self.image(Area::Fetched, i, 0, None)));
        }
        for (i, message) in theirs.iter().enumerate() {
            let readable = (message.op == Op::Read).then_some(message);
            images.push(("to receive", message, self.image(Area::Inbox, i, 0, None)));
            images.push(("to be written", message, self.image(Area::Written, i, 0, None)));
            images.push((
                "to be read",
                message,
                self.image(Area::Read, i, message.remote, readable),
            ));
        }
        images
    }

    /// Memory of a side after a round.
    fn after<'m>(
        &self,
        ours: &'m [Message],
        theirs: &'m [Message],
    ) -> Vec<(&'static str, &'m Message, Image)> {
        let mut images = Vec::new();
        for (i, message) in ours.iter().enumerate() {
            let fetched = (message.op == Op::Read).then_some(message);
            images.push((
                "fetched",
                message,
                self.image(Area::Fetched, i, message.local, fetched),
            ));
        }
        for (i, message) in theirs.iter().enumerate() {
            let sent = matches!(message.op, Op::Send | Op::SendImm).then_some(message);
            let written = matches!(message.op, Op::Write | Op::WriteImm).then_some(message);
            images.push((
                "received",
                message,
                self.image(Area::Inbox, i, message.remote, sent),
            ));
            images.push((
                "written",
                message,
                self.image(Area::Written, i, message.remote, written),
            ));
        }
        images
    }

    fn image(&self, area: Area, index: usize, misaligned: usize, data: Option<&Message>) -> Image {
        Image {
            slot: self.slot(area, index),
            misaligned,
            len: data.map_or(0, |message| message.len),
            seed: data.map_or(0, |message| message.data_seed),
        }
    }

    fn post_receives(&self, end: &mut dyn End, theirs: &[Message]) -> Result<()> {
        let mut list = Vec::new();
        for (i, message) in theirs.iter().enumerate().filter(|(_, m)| m.op.consumes()) {
            let room = match message.op {
                Op::WriteImm => 32,
                _ => message.len + message.spare,
            };
            list.push(RecvWr {
                wr_id: i as u64,
                local: Range {
                    offset: self.slot(Area::Inbox, i).data(message.remote),
                    len: room.min(self.plan.size_max),
                    parts: message.remote_parts,
                },
            });
        }
        if !theirs.is_empty() {
            list.push(RecvWr {
                wr_id: LAST,
                local: Range::EMPTY,
            });
        }
        end.post_recv(&list)
    }

    fn post(&self, side: &mut Side<'_>, ours: &[Message]) -> Result<()> {
        let mut list = Vec::new();
        for (i, message) in ours.iter().enumerate() {
            let (local, remote) = match message.op {
                Op::Read => (Area::Fetched, Area::Read),
                _ => (Area::Source, Area::Written),
            };
            list.push(SendWr {
                wr_id: i as u64,
                op: message.op,
                local: Range {
                    offset: self.slot(local, i).data(message.local),
                    len: message.len,
                    parts: message.local_parts,
                },
                remote: side.remote.at(self.slot(remote, i).data(message.remote) as u64),
                imm: message.imm,
            });
        }
        if !ours.is_empty() {
            list.push(SendWr {
                wr_id: LAST,
                op: Op::Send,
                local: Range::EMPTY,
                remote: side.remote.at(0),
                imm: 0,
            });
        }
        side.end.post_send(&list)
    }
}

/// Waits for the completions of a round, which must come in order on either queue.
fn complete(end: &mut dyn End, ours: &[Message], theirs: &[Message], deadline: Instant) -> Result<()> {
    let last = |any: bool| any.then_some((LAST, None));
    let number = |(i, message)| (i as u64, Some(message));
    let mut sends: VecDeque<(u64, Option<&Message>)> = ours.iter().enumerate().map(number).collect();
    sends.extend(last(!ours.is_empty()));
    let consuming = theirs.iter().enumerate().filter(|(_, m)| m.op.consumes());
    let mut receives: VecDeque<(u64, Option<&Message>)> = consuming.map(number).collect();
    receives.extend(last(!theirs.is_empty()));
    while sends.len() + receives.len() > 0 {
        let completions = end.poll(sends.len() + receives.len(), LOOK)?;
        if completions.is_empty() && Instant::now() > deadline {
            bail!(
                "none in {PATIENCE:?}: {} sends and {} receives are outstanding",
                sends.len(),
                receives.len()
            );
        }
        for completion in completions {
            let completion = completion.ok()?;
            let queue = if completion.is_recv {
                &mut receives
            } else {
                &mut sends
            };
            match queue.pop_front() {
                Some((id, Some(message))) => check(&completion, id, message)?,
                Some((LAST, None)) if completion.wr_id == LAST => {}
                _ => bail!("not the one that is due: {completion:?}"),
            }
        }
    }
    Ok(())
}
