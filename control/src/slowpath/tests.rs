//! The slow path against stations that are slow paths themselves.
use proptest::prelude::*;
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet,
        Ipv4Repr, Ipv6Packet, Ipv6Repr,
    },
};

use super::{discovery::ethernet, *};
use crate::{
    device::{GidEntry, sample},
    gid::GidTable,
};

const PEER: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 99]);

fn slow(vlan: Option<u16>) -> (SlowPath, Instant) {
    let now = Instant::now();
    (SlowPath::new(&[device(vlan, false)], now), now)
}

fn device(vlan: Option<u16>, kernel_answers: bool) -> Device {
    let mut device = sample("rnic0", 1, &[("10.0.0.1", 24), ("fd00::1", 64)]);
    let entries = device.gids.iter().map(|entry| GidEntry {
        vlan,
        kernel_answers,
        ..*entry
    });
    device.gids = GidTable::of(entries);
    device
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The question a peer asks for our address.
fn asked(target: &str, from: &str) -> Vec<u8> {
    let target = Target {
        port: 0,
        vlan: None,
        ip: ip(target),
        from: ip(from),
    };
    question(&target, Question::All, PEER).unwrap()
}

/// The frames that wait to be sent.
fn sent(slow: &mut SlowPath) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| slow.next_outgoing())
        .map(|o| o.bytes)
        .collect()
}

/// What the answers say to the peer about their sender.
fn told(frames: &[Vec<u8>]) -> Vec<Heard> {
    frames.iter().filter_map(|frame| listen(frame, PEER.0)).collect()
}

#[test]
fn arp_and_neighbour_solicitations_are_answered_and_the_asker_is_learned() {
    // Linux asks from its link-local address when it looks whether an old entry still holds.
    let askers = [
        ("10.0.0.1", "10.0.0.9"),
        ("fd00::1", "fd00::9"),
        ("fd00::1", "fe80::9"),
        ("fd00::1", "2001:db8::9"),
    ];
    for (ours, theirs) in askers {
        let (mut slow, now) = slow(None);
        let (heard, vlan) = slow.receive(0, &asked(ours, theirs), None, now);
        assert_eq!(
            heard,
            Some(Heard {
                ip: ip(theirs),
                mac: PEER.0,
                to_us: false,
                overrides: true,
            })
        );
        assert_eq!(vlan, None);
        let answer = Heard {
            ip: ip(ours),
            mac: [2, 0, 0, 0, 0, 1],
            to_us: true,
            // smoltcp does not insist.
            overrides: ip(ours).is_ipv4(),
        };
        assert!(
            told(&sent(&mut slow)).contains(&answer),
            "{ours} was not told to {theirs}"
        );
    }
}

#[test]
fn addresses_of_others_are_not_answered_for() {
    for (other, theirs) in [("10.0.0.2", "10.0.0.9"), ("fd00::2", "fd00::9")] {
        let (mut slow, now) = slow(None);
        slow.receive(0, &asked(other, theirs), None, now);
        assert!(told(&sent(&mut slow)).iter().all(|heard| heard.ip != ip(other)));
    }
}

#[test]
fn addresses_that_the_kernel_answers_for_are_left_to_it_and_new_ones_are_answered_for() {
    let now = Instant::now();
    let mut slow = SlowPath::new(&[device(None, true)], now);
    let answered = |slow: &mut SlowPath| {
        let pairs = [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")];
        pairs.map(|(ours, theirs)| {
            slow.receive(0, &asked(ours, theirs), None, now);
            told(&sent(slow)).iter().any(|heard| heard.ip == ip(ours))
        })
    };
    assert_eq!(answered(&mut slow), [false, false]);
    slow.set_addresses(0, &device(None, false));
    assert_eq!(answered(&mut slow), [true, true]);
    slow.set_addresses(0, &sample("rnic0", 1, &[("fd00::1", 64)]));
    assert_eq!(answered(&mut slow), [false, true]);
}

#[test]
fn an_echo_request_is_answered() {
    let (mut slow, now) = slow(None);
    slow.receive(0, &asked("10.0.0.1", "10.0.0.9"), None, now);
    sent(&mut slow);
    let echo = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: 1,
        data: b"ping",
    };
    let packet = Ipv4Repr {
        src_addr: [10, 0, 0, 9].into(),
        dst_addr: [10, 0, 0, 1].into(),
        next_header: IpProtocol::Icmp,
        payload_len: echo.buffer_len(),
        hop_limit: 64,
    };
    let checks = ChecksumCapabilities::default();
    let own = EthernetAddress([2, 0, 0, 0, 0, 1]);
    let mut frame = ethernet(PEER, own, EthernetProtocol::Ipv4, 20 + echo.buffer_len());
    packet.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &checks);
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut frame[34..]), &checks);
    slow.receive(0, &frame, None, now);
    let answers = sent(&mut slow);
    let answered = answers.iter().any(|frame| {
        let Ok(icmp) = Icmpv4Packet::new_checked(&frame[34..]) else {
            return false;
        };
        matches!(
            Icmpv4Repr::parse(&icmp, &checks),
            Ok(Icmpv4Repr::EchoReply {
                ident: 7,
                seq_no: 1,
                data: b"ping"
            })
        )
    });
    assert!(answered, "{answers:?}");
}

#[test]
fn an_echo_request_over_ipv6_is_answered() {
    let (mut slow, now) = slow(None);
    slow.receive(0, &asked("fd00::1", "fd00::9"), None, now);
    sent(&mut slow);
    let (source, destination) = ("fd00::9".parse().unwrap(), "fd00::1".parse().unwrap());
    let echo = Icmpv6Repr::EchoRequest {
        ident: 7,
        seq_no: 1,
        data: b"ping",
    };
    let packet = Ipv6Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Icmpv6,
        payload_len: echo.buffer_len(),
        hop_limit: 64,
    };
    let checks = ChecksumCapabilities::default();
    let own = EthernetAddress([2, 0, 0, 0, 0, 1]);
    let mut frame = ethernet(PEER, own, EthernetProtocol::Ipv6, 40 + echo.buffer_len());
    packet.emit(&mut Ipv6Packet::new_unchecked(&mut frame[14..54]));
    echo.emit(
        &source,
        &destination,
        &mut Icmpv6Packet::new_unchecked(&mut frame[54..]),
        &checks,
    );
    slow.receive(0, &frame, None, now);
    let answers = sent(&mut slow);
    // Echo reply is type 129.
    let answered =
        |frame: &Vec<u8>| frame[..6] == PEER.0 && frame.get(54) == Some(&129) && frame.ends_with(b"ping");
    assert!(answers.iter().any(answered), "{answers:?}");
}

#[test]
fn tagged_frames_are_answered_with_the_tag_wherever_the_driver_left_it() {
    let question = asked("10.0.0.1", "10.0.0.9");
    for (frame, tag) in [
        (question.clone(), Some(5)),
        (with_tag(question.clone(), Some(5)), None),
    ] {
        let (mut slow, now) = slow(Some(5));
        let (_, vlan) = slow.receive(0, &frame, tag, now);
        assert_eq!(vlan, Some(5));
        let answers = sent(&mut slow);
        assert!(
            answers
                .iter()
                .any(|f| split_tag(f).is_some_and(|(tci, ..)| tci == 5)),
            "{answers:?}"
        );
    }
    let (mut slow, now) = slow(Some(5));
    slow.receive(0, &question, None, now);
    assert!(
        told(&sent(&mut slow)).is_empty(),
        "an untagged question for a tagged address"
    );
}

#[test]
fn our_questions_are_those_others_answer() {
    let families = [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")];
    let questions = [Question::All, Question::One(PEER.0)];
    for ((ours, theirs), whom) in families.into_iter().flat_map(|f| questions.map(|q| (f, q))) {
        let (mut slow, now) = slow(None);
        let target = Target {
            port: 0,
            vlan: None,
            ip: ip(theirs),
            from: ip(ours),
        };
        slow.ask(&target, whom);
        let question = sent(&mut slow).pop().unwrap();
        let peer = sample("peer", 99, &[("10.0.0.9", 24), ("fd00::9", 64)]);
        let mut peer = SlowPath::new(&[peer], now);
        peer.receive(0, &question, None, now);
        let answer = sent(&mut peer)
            .into_iter()
            .find(|f| listen(f, [2, 0, 0, 0, 0, 1]).is_some_and(|h| h.to_us));
        let (heard, _) = slow.receive(0, &answer.expect("no answer"), None, now);
        assert_eq!(
            heard,
            Some(Heard {
                ip: ip(theirs),
                mac: PEER.0,
                to_us: true,
                overrides: ip(theirs).is_ipv4(),
            })
        );
    }
}

proptest! {
    #[test]
    fn random_frames_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        ethertype in prop::sample::select(vec![[8u8, 0], [8, 6], [0x86, 0xDD], [0x81, 0]]),
    ) {
        let (mut slow, now) = slow(None);
        let mut frame = vec![0xFF; 12];
        frame.extend_from_slice(&ethertype);
        frame.extend_from_slice(&bytes);
        for len in [0, 5, 13, 14, frame.len()] {
            slow.receive(0, &frame[..len.min(frame.len())], None, now);
        }
    }
}
