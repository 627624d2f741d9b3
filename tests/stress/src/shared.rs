//! A client of the library whose QPs share receive queues, and are destroyed under traffic: every message arrives once
//! and whole in some receive, and no receive is lost to its queue.
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use rnic::{Access, Completion, ConnectOptions, Context, Cq, Error, Mr, Pd, Qp, QpConfig, Srq, Status};
use rnic_tests::probe::Rng;

use crate::worker::{Done, PATIENCE};

/// Bytes of a place in memory, for one message.
const PLACE: usize = 2048;
/// Pairs of QPs at most.
const PAIRS: usize = 4;

/// A receive queue, and the QPs that draw from it with those that send to them.
struct Shared {
    srq: Srq,
    sent: Cq,
    received: Cq,
    source: Mr,
    target: Mr,
    pairs: Vec<Pair>,
}

struct Pair {
    sender: Qp,
    receiver: Qp,
    sent: u64,
    arrived: u64,
}

/// Makes and destroys such queues until told to stop.
pub fn run(socket: &Path, seed: &[u64], stop: &AtomicBool) -> Result<Done> {
    let context = Context::open(socket, "rnic0")?;
    let pd = context.alloc_pd()?;
    let mut rng = Rng::new(seed);
    let mut done = Done::default();
    while !stop.load(Ordering::Relaxed) {
        let shared = match Shared::new(&context, &pd, &mut rng) {
            Ok(shared) => shared,
            // Ids are scarce.
            Err(Error::Daemon { errno: 11 | 12, .. }) => {
                std::thread::sleep(std::time::Duration::from_millis(2));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        shared.play(&mut rng, &mut done)?;
        done.count("library: SRQs used");
    }
    Ok(done)
}

impl Shared {
    fn new(context: &Context, pd: &Pd, rng: &mut Rng) -> rnic::Result<Shared> {
        let own = context.alloc_pd()?;
        let srq = own.create_srq(1 + rng.below(12) as u32, 1 + rng.below(6) as u32)?;
        let (sent, received) = (context.create_cq(64)?, context.create_cq(64)?);
        let options = ConnectOptions::default();
        let pairs = (0..1 + rng.below(PAIRS))
            .map(|_| {
                let sender = pd.create_qp(QpConfig::new(&sent, &sent).max_send_wr(8).sq_sig_all(true))?;
                let receiver = pd.create_qp(QpConfig::new(&received, &received).max_send_wr(1).srq(&srq))?;
                let (to_receiver, to_sender) = (receiver.endpoint(&options)?, sender.endpoint(&options)?);
                sender.connect(&to_receiver, &options)?;
                receiver.connect(&to_sender, &options)?;
                Ok(Pair {
                    sender,
                    receiver,
                    sent: 0,
                    arrived: 0,
                })
            })
            .collect::<rnic::Result<_>>()?;
        Ok(Shared {
            source: pd.alloc_mr(PAIRS * PLACE, Access::NONE)?,
            target: own.alloc_mr(srq.max_wr() as usize * PLACE, Access::LOCAL_WRITE)?,
            srq,
            sent,
            received,
            pairs,
        })
    }

    fn play(mut self, rng: &mut Rng, done: &mut Done) -> Result<()> {
        let max = u64::from(self.srq.max_wr());
        for place in 0..max {
            self.post(place)?;
        }
        ensure!(self.post(0).is_err(), "an SRQ took more receives than it holds");
        for _ in 0..rng.below(60) {
            let at = rng.below(self.pairs.len());
            self.send(at, rng.below(PLACE) + 1)?;
            self.take(done)?;
            if self.pairs.len() > 1 && rng.below(20) == 0 {
                let at = rng.below(self.pairs.len());
                // On its way, or arrived and never looked at.
                self.post_send(at, PLACE)?;
                let Pair { sender, receiver, .. } = self.pairs.swap_remove(at);
                let (first, second) = if rng.below(2) == 0 {
                    (sender, receiver)
                } else {
                    (receiver, sender)
                };
                first.destroy()?;
                second.destroy()?;
                done.count("library: QPs on SRQs destroyed in flight");
                self.refill()?;
            }
        }
        self.pairs.clear();
        self.refill()?;
        let full = self.post(0);
        ensure!(full.is_err(), "more receives went out than came back to the SRQ");
        Ok(())
    }

    /// Posts again what a destroyed QP has given back. Its place is not known, and does not matter: the message in it
    /// was never looked at.
    fn refill(&self) -> Result<()> {
        while self.post(0).is_ok() {}
        Ok(())
    }

    fn post(&self, place: u64) -> rnic::Result<usize> {
        let at = place as usize * PLACE;
        let local = self.target.slice(at..at + PLACE);
        self.srq.post_recv(|batch| {
            batch.recv(local).wr_id(place);
        })
    }

    /// Sends a message, and waits until it was acknowledged.
    fn send(&mut self, at: usize, len: usize) -> Result<()> {
        self.post_send(at, len)?;
        let completion = one(&self.sent).context("a SEND to an SRQ")?;
        ensure!(completion.status == Status::Success, "{completion:?}");
        Ok(())
    }

    /// Posts a message that says who it is from and its number.
    fn post_send(&mut self, at: usize, len: usize) -> Result<()> {
        let pair = &mut self.pairs[at];
        let mut data = vec![pair.sent as u8 ^ 0x5A; len.max(16)];
        data[..8].copy_from_slice(&u64::from(pair.sender.qpn()).to_le_bytes());
        data[8..16].copy_from_slice(&pair.sent.to_le_bytes());
        let local = self.source.slice(at * PLACE..at * PLACE + data.len());
        local.write_at(0, &data);
        pair.sender.post(|batch| {
            batch.send(local);
        })?;
        pair.sent += 1;
        Ok(())
    }

    /// Takes the message that was sent last, and gives its receive back.
    fn take(&mut self, done: &mut Done) -> Result<()> {
        let got = one(&self.received).context("a receive of an SRQ")?;
        ensure!(got.status == Status::Success, "{got:?}");
        let pair = self.pairs.iter_mut().find(|pair| pair.receiver.qpn() == got.qpn);
        let pair = pair.with_context(|| format!("a completion of a destroyed QP: {got:?}"))?;
        let data = self
            .target
            .read_vec(got.wr_id as usize * PLACE, got.byte_len as usize);
        let number = |at: usize| {
            let bytes: [u8; 8] = data[at..at + 8].try_into().unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        ensure!(
            (number(0), number(8)) == (pair.sender.qpn().into(), pair.arrived),
            "message {} of QP {:#x} instead of {} of {:#x}",
            number(8),
            number(0),
            pair.arrived,
            pair.sender.qpn()
        );
        ensure!(
            data[16..].iter().all(|byte| *byte == pair.arrived as u8 ^ 0x5A),
            "the bytes of message {} are others",
            pair.arrived
        );
        pair.arrived += 1;
        done.count("library: messages through SRQs");
        self.post(got.wr_id)?;
        Ok(())
    }
}

fn one(cq: &Cq) -> Result<Completion> {
    let done = cq.wait_vec(1, Some(PATIENCE))?;
    done.into_iter()
        .next()
        .with_context(|| format!("nothing completed within {PATIENCE:?}"))
}
