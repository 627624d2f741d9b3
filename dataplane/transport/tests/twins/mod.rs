//! Two nodes of which one takes packets the short way: nothing they do may differ.

use crate::common;
use rnic_sim::{Node, Packet};
use rnic_transport::Received;
use rnic_wire::Operation;

fn is_fetch(packet: &Packet) -> bool {
    use Operation as O;
    let operation = packet.headers.bth.opcode.operation;
    matches!(operation, O::ReadRequest | O::CompareSwap | O::FetchAdd)
}

/// Everything that a packet may change, in words.
fn state(node: &Node) -> String {
    format!("{} {:?}", common::record(&node.qp), node.host)
}

/// Asserts that two states are one, and shows where they part.
fn assert_same(a: &str, b: &str, what: &str) {
    if a != b {
        let at = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        let part = |text: &str| {
            text.get(at.saturating_sub(100)..)
                .unwrap_or("")
                .chars()
                .take(200)
                .collect::<String>()
        };
        panic!("{what}: {:?} beside {:?}", part(a), part(b));
    }
}

/// Two nodes in the same state.
pub struct Twins {
    short: Node,
    pub long: Node,
    /// Packets that were taken the short way.
    pub taken: usize,
}

impl Twins {
    pub fn new(make: impl Fn() -> Node) -> Self {
        Twins {
            short: make(),
            long: make(),
            taken: 0,
        }
    }

    pub fn both<R: PartialEq + std::fmt::Debug>(&mut self, f: impl Fn(&mut Node) -> R) -> R {
        let results = (f(&mut self.short), f(&mut self.long));
        assert_eq!(results.0, results.1);
        results.0
    }

    /// Gives the same packet to both, to one of them the short way if it goes, and compares them.
    pub fn receive(&mut self, packet: &Packet) -> Received {
        let outcome = self.long.receive(packet);
        self.short.host.placed = None;
        let before = state(&self.short);
        let taken = self.short.receive_short(packet);
        match taken {
            Some(taken) => {
                self.taken += 1;
                assert_eq!(taken, outcome);
                if is_fetch(packet) {
                    // It was answered at once: the other says the same now.
                    self.both(|node| node.transmit_all());
                }
            }
            None => {
                assert_same(
                    &state(&self.short),
                    &before,
                    "left to the long way, but not as it was",
                );
                assert_eq!(self.short.receive(packet), outcome);
            }
        }
        self.same();
        outcome
    }

    pub fn same(&self) {
        assert_same(&state(&self.short), &state(&self.long), "short and long way");
        assert_eq!(self.short.early, self.long.early);
    }
}
