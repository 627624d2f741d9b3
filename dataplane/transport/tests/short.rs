//! Messages that are posted and sent in one step: what comes of it is what comes of the two steps.
mod common;

use common::*;
use proptest::prelude::*;
use rnic_sim::{Node, connect};
use rnic_transport::{Limits, QpState, SendFlags, SendWr, WrOpcode};
use rnic_wire::Mtu;

const MTU: usize = 256;

/// What may happen at the sender.
#[derive(Clone, Debug)]
enum Step {
    Post {
        write: bool,
        len: usize,
        flags: u32,
    },
    Fetch {
        opcode: WrOpcode,
        len: u32,
        flags: u32,
    },
    /// The peer does as much.
    Answer {
        opcode: WrOpcode,
        len: usize,
    },
    /// Everything sent arrives, and is answered.
    Exchange,
    /// Everything sent is lost, and time passes.
    Lose,
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let flags = SendFlags::SIGNALED.bits() | SendFlags::SOLICITED.bits() | SendFlags::FENCE.bits();
    let len = prop_oneof![0..2 * MTU, 0..12 * MTU];
    let post = (any::<bool>(), len, 0..=flags).prop_map(|(write, len, flags)| Step::Post {
        write,
        len,
        flags: flags.into(),
    });
    let opcodes = [WrOpcode::Read, WrOpcode::CompSwap, WrOpcode::FetchAdd];
    let fetch = (prop::sample::select(opcodes.to_vec()), 0..600u32, 0..=flags);
    let fetch = fetch.prop_map(|(opcode, len, flags)| {
        let len = if opcode == WrOpcode::Read { len } else { 8 };
        Step::Fetch {
            opcode,
            len,
            flags: flags.into(),
        }
    });
    let opcodes = [
        WrOpcode::Read,
        WrOpcode::FetchAdd,
        WrOpcode::Send,
        WrOpcode::Write,
    ];
    let answer = (prop::sample::select(opcodes.to_vec()), 0..600usize);
    let answer = answer.prop_map(|(opcode, len)| Step::Answer {
        opcode,
        len: if opcode == WrOpcode::FetchAdd { 8 } else { len },
    });
    prop_oneof![
        8 => post,
        3 => fetch,
        2 => answer,
        3 => Just(Step::Exchange),
        1 => Just(Step::Lose),
        1 => Just(Step::Drain),
    ]
}

fn pair(short: bool, selective: bool, window: u32) -> (Node, Node) {
    let (mut a, mut b) = connect(Mtu::M256, |attr| attr.selective = selective);
    a.qp = a.qp.with_limits(Limits::new(window, 2));
    a.sends_short = short;
    (a.short, b.short) = (short, short);
    register(&mut a, 4096);
    register(&mut b, 4096);
    for wr_id in 0..256 {
        a.host.post_recv(wr_id, 12 * MTU as u32);
        b.host.post_recv(wr_id, 12 * MTU as u32);
    }
    (a, b)
}

/// Plays the steps; what was sent, and what the sender's record and its host say in the end.
fn play(steps: &[Step], short: bool, selective: bool, window: u32) -> (Vec<String>, usize) {
    let (mut a, mut b) = pair(short, selective, window);
    let (mut said, mut wholes, mut wr_id) = (Vec::new(), 0, 0);
    for step in steps {
        match *step {
            Step::Post { write, len, flags } => {
                let data = a.host.add_send_buf(vec![wr_id as u8; len]);
                let opcode = if write { WrOpcode::Write } else { WrOpcode::Send };
                let flags = SendFlags::from_bits(flags).unwrap_or_default();
                let wr = SendWr {
                    wr_id,
                    opcode,
                    flags,
                    rkey: KEY,
                    remote_addr: BASE + wr_id % 64,
                    length: len as u32,
                    data,
                    ..SendWr::default()
                };
                wr_id += 1;
                let room = a.qp.whole_room(a.sq.len() as u32);
                wholes += usize::from(short && room > 0 && len <= MTU && !flags.contains(SendFlags::FENCE));
                said.push(format!("{:?}", a.post(wr)));
            }
            Step::Fetch { opcode, len, flags } => {
                let data = a.host.add_send_buf(vec![0; len as usize]);
                let fetch = SendWr {
                    wr_id,
                    opcode,
                    flags: SendFlags::from_bits(flags).unwrap_or_default(),
                    rkey: KEY,
                    remote_addr: BASE,
                    compare_add: wr_id,
                    length: len,
                    data,
                    ..SendWr::default()
                };
                wr_id += 1;
                said.push(format!("{:?}", a.post(fetch)));
            }
            Step::Answer { opcode, len } => {
                let data = b.host.add_send_buf(vec![7; len]);
                let asked = b.post(SendWr {
                    wr_id,
                    opcode,
                    rkey: KEY,
                    remote_addr: BASE,
                    length: len as u32,
                    data,
                    ..SendWr::default()
                });
                let packets = b.transmit_all();
                said.push(format!("{asked:?} {:?}", a.receive_all(&packets)));
            }
            Step::Exchange => {
                let sent = a.transmit_all();
                said.push(format!("{sent:?}"));
                said.push(format!("{:?}", b.receive_all(&sent)));
                said.push(format!("{:?}", a.receive_all(&b.transmit_all())));
            }
            Step::Lose => {
                said.push(format!("{:?}", a.transmit_all()));
                let later = a.qp.poll_timeout().unwrap_or(a.now);
                (a.now, b.now) = (later, later);
                a.wait(0);
            }
            Step::Drain => {
                let state = match a.qp.state() {
                    QpState::Rts => QpState::Sqd,
                    _ => QpState::Rts,
                };
                said.push(format!("{:?}", a.set_state(state)));
            }
        }
        // What was posted goes out at once, as it does the short way.
        said.push(format!("{:?}", a.transmit_all()));
        // Whose turn is next, and what stands in places that are not in use, may differ.
        let record = format!("{} {:?}", record(&a.qp), a.sq)
            .replace("told: true", "told: false")
            .replace("sent: 1,", "sent: 0,");
        said.push(record);
        said.push(format!("{:?}", a.host.completions));
    }
    (said, wholes)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_step_does_what_posting_and_polling_do(
        steps in prop::collection::vec(step(), 1..40),
        selective in any::<bool>(),
        window in prop::sample::select(vec![1, 2, 5, 64]),
    ) {
        let (long, none) = play(&steps, false, selective, window);
        let (short, _) = play(&steps, true, selective, window);
        prop_assert_eq!(none, 0);
        for (long, short) in long.iter().zip(&short) {
            prop_assert_eq!(long, short);
        }
    }
}

#[test]
fn whole_messages_take_the_short_way_until_the_window_is_full() {
    let steps: Vec<Step> = (0..8)
        .map(|_| Step::Post {
            write: true,
            len: MTU,
            flags: 0,
        })
        .collect();
    assert_eq!(play(&steps, true, false, 5).1, 5);
    assert_eq!(play(&steps, true, false, 64).1, 8);
    let (mut a, _) = pair(true, false, 64);
    assert!(
        a.qp.whole_room(16) == 16 && a.qp.whole_room(4) == 4,
        "the ring is the limit"
    );
    a.set_state(QpState::Sqd).expect("RTS may drain");
    assert_eq!(a.qp.whole_room(16), 0, "draining");
}
