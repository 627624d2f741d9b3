//! One test: atomics of one or both ends, each executed exactly once.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic::{Mtu, Opcode};
use rnic_tests::probe::Rng;

use crate::end::{Atomic, AtomicWr, End, Resources, Service};
use crate::exchange::{Moved, PATIENCE, connect};
use crate::wire::Family;

/// Atomics posted at a time: as many as may be outstanding.
const WINDOW: usize = 16;
const ROUNDS: usize = 4;
/// Offset of the word that the peer works on, which has a neighbour at either side.
const WORD: usize = 1024;
/// Offset of the results of our requests.
const RESULTS: usize = 2048;
const NEIGHBOUR: u64 = 0xA5A5_A5A5_A5A5_A5A5;

/// Atomics on one word at each responder. It is its requester's alone, so that every result is known beforehand.
#[derive(Clone, Debug)]
pub struct Atomics {
    /// Which ends make requests: ours, theirs.
    pub requester: [bool; 2],
    /// Addresses used.
    pub family: Family,
    /// Path MTU.
    pub mtu: Mtu,
    /// Of the operands.
    pub seed: u64,
}

impl Atomics {
    /// Carries them out between our end and theirs.
    pub fn run(&self, ours: &mut dyn End, theirs: &mut dyn End) -> Result<Moved> {
        let resources = Resources {
            service: Service::Rc,
            family: self.family,
            memory: 4096,
            depth: WINDOW as u32,
            shared: false,
        };
        let mut sides = connect(ours, theirs, &resources, self.mtu)?;
        let mut rng = Rng::new(&[self.seed]);
        // What the word at the responder of each side's requests holds, or will when all that is posted is done.
        let mut words = [rng.next(), rng.next()];
        for side in [0, 1] {
            for (offset, value) in [
                (WORD - 8, NEIGHBOUR),
                (WORD, words[1 - side]),
                (WORD + 8, NEIGHBOUR),
            ] {
                sides[side].end.poke(offset, value)?;
            }
        }
        let mut moved = Moved::default();
        for round in 0..ROUNDS {
            let mut due = [Vec::new(), Vec::new()];
            for side in (0..2).filter(|side| self.requester[*side]) {
                let remote = sides[side].remote.at(WORD as u64);
                let requests = (0..WINDOW).map(|i| {
                    let atomic = choose(&mut rng, words[side]);
                    due[side].push((atomic, words[side]));
                    words[side] = atomic.apply(words[side]);
                    AtomicWr {
                        wr_id: i as u64,
                        atomic,
                        local: RESULTS + 8 * i,
                        remote,
                    }
                });
                let requests: Vec<_> = requests.collect();
                sides[side].end.post_atomics(&requests)?;
            }
            for (side, due) in due.iter().enumerate().filter(|(_, due)| !due.is_empty()) {
                let end = &mut *sides[side].end;
                complete(end, due).with_context(|| format!("round {round}: {}", end.name()))?;
                let found = sides[1 - side].end.peek(WORD)?;
                ensure!(
                    found == words[side],
                    "round {round}: {}: the word is {found:#x} instead of {:#x}",
                    sides[1 - side].end.name(),
                    words[side]
                );
                moved.messages += due.len() as u64;
                moved.bytes += 8 * due.len() as u64;
            }
        }
        for side in &mut sides {
            for offset in [WORD - 8, WORD + 8] {
                let found = side.end.peek(offset)?;
                ensure!(
                    found == NEIGHBOUR,
                    "{}: beside the word: {found:#x}",
                    side.end.name()
                );
            }
            side.end.close()?;
        }
        Ok(moved)
    }
}

/// One of: an addition, a swap that takes place, a swap that does not.
fn choose(rng: &mut Rng, word: u64) -> Atomic {
    let (operand, swap) = (rng.next(), rng.next());
    match rng.below(3) {
        0 => Atomic::FetchAdd { add: operand },
        1 => Atomic::CompareSwap { compare: word, swap },
        _ => Atomic::CompareSwap {
            compare: operand,
            swap,
        },
    }
}

/// Waits for the completions of a round; each result must be the word as it stood before.
fn complete(end: &mut dyn End, due: &[(Atomic, u64)]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut done = 0;
    while done < due.len() {
        let completions = end.poll(due.len() - done, Duration::from_secs(5))?;
        if completions.is_empty() && Instant::now() > deadline {
            bail!(
                "{} of {} atomics are not done after {PATIENCE:?}",
                due.len() - done,
                due.len()
            );
        }
        for completion in completions {
            let completion = completion.ok()?;
            let (atomic, original) = due[done];
            let wanted = match atomic {
                Atomic::FetchAdd { .. } => Opcode::FetchAdd,
                Atomic::CompareSwap { .. } => Opcode::CompareSwap,
            };
            ensure!(
                completion.wr_id == done as u64 && completion.opcode == wanted,
                "{wanted:?} {done} is due: {completion:?}"
            );
            let found = end.peek(RESULTS + 8 * done)?;
            ensure!(
                found == original,
                "{atomic:x?} {done} found {found:#x} instead of {original:#x}"
            );
            done += 1;
        }
    }
    Ok(())
}
