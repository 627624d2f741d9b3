//! The one-line text form of frames.

mod common;

use common::samples;
use rnic_wire::*;

fn line(transport: Transport, operation: Operation) -> String {
    let frame = samples::frame(Opcode::new(transport, operation), samples::v4(), VlanTags::NONE);
    Summary::new(&frame, None).to_string()
}

#[test]
fn requests_show_their_addresses_flags_range_and_length() {
    assert_eq!(
        line(Transport::Rc, Operation::WriteOnlyImm),
        "192.168.77.1>192.168.77.2 RC WRITE_ONLY_IMM qp=0x12000b psn=0xfedc0b ackreq va=0x7f0102030405060b \
         rkey=0xa0b0c00b dma=8203 imm=0xcafe000b len=12"
    );
    assert_eq!(
        line(Transport::Xrc, Operation::SendOnlyInv),
        "192.168.77.1>192.168.77.2 XRC SEND_ONLY_INV qp=0x1200b7 psn=0xfedcb7 se ackreq srq=0x4567b7 \
         invalidate=0xdead00b7 len=184"
    );
    assert_eq!(
        line(Transport::Ud, Operation::SendOnly),
        "192.168.77.1>192.168.77.2 UD SEND_ONLY qp=0x120064 psn=0xfedc64 se qkey=0x11111111 srcqp=0x770064 len=101"
    );
    assert_eq!(
        line(Transport::Rc, Operation::CompareSwap),
        "192.168.77.1>192.168.77.2 RC CMP_SWAP qp=0x120013 psn=0xfedc13 ackreq va=0x7f01020304050608 \
         rkey=0xa0b0c0d0 value=0x123456789abcdef compare=0xfedcba9876543210"
    );
    assert_eq!(
        line(Transport::Rc, Operation::Flush),
        "192.168.77.1>192.168.77.2 RC FLUSH qp=0x12001c psn=0xfedc1c ackreq placement=0x3 selectivity=1 \
         va=0x7f0102030405061c rkey=0xa0b0c01c dma=8220"
    );
}

#[test]
fn responses_show_syndrome_and_msn() {
    assert_eq!(
        line(Transport::Rc, Operation::AtomicAcknowledge),
        "192.168.77.1>192.168.77.2 RC ATOMIC_ACK qp=0x120012 psn=0xfedc12 syndrome=ACK(credits=5) msn=3342354 \
         original=0x1122334455667788"
    );
}

#[test]
fn syndromes_say_ack_nak_or_rnr_with_their_value() {
    assert_eq!(Syndrome::ACK.to_string(), "ACK");
    assert_eq!(
        Syndrome::RnrNak { timer: 12 }.to_string(),
        "RNR_NAK(timer=12,640us)"
    );
    assert_eq!(
        Syndrome::Nak(NakCode::RemoteAccessError).to_string(),
        "NAK(REMOTE_ACCESS_ERROR)"
    );
    assert_eq!(Syndrome::Nak(NakCode::Reserved(9)).to_string(), "NAK(RESERVED_9)");
    assert_eq!(Syndrome::Reserved(0x80).to_string(), "RESERVED(0x80)");
}

#[test]
fn cnps_vlans_ipv6_and_ecn_marks_are_shown() {
    let mut repr = samples::repr(Opcode::CNP, samples::v6(), samples::two_tags());
    repr.headers.bth.becn = true;
    repr.headers.bth.pkey = 0x8001;
    if let Net::V6(ip) = &mut repr.net {
        ip.traffic_class = Ecn::Ce.on(0);
    }
    let frame = samples::emit(&repr, &[]);
    assert_eq!(
        Summary::new(&frame, None).to_string(),
        "vlan=100 vlan=291 fd77::1>fd77::2 CE CNP qp=0x120081 psn=0xfedc81 becn pkey=0x8001"
    );
}

#[test]
fn broken_reserved_and_foreign_frames_are_shown_too() {
    let mut frame = samples::frame(
        Opcode::new(Transport::Rc, Operation::SendMiddle),
        samples::v4(),
        VlanTags::NONE,
    );
    frame[14 + 28] = 0x1F;
    assert_eq!(
        Summary::new(&frame, Some(7)).to_string(),
        "vlan=7 192.168.77.1>192.168.77.2 RC reserved opcode 0x1f qp=0x120001 psn=0xfedc01"
    );
    frame[14 + 20 + 5] ^= 1;
    assert_eq!(
        Summary::new(&frame, None).to_string(),
        "52:54:00:77:00:01>52:54:00:77:00:02 malformed: UDP length 281 differs from the 280 bytes inside IP len=314"
    );
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(
        Summary::new(&frame, None).to_string(),
        "52:54:00:77:00:01>52:54:00:77:00:02 type=0x0806 len=314"
    );
    assert_eq!(
        Summary::new(&[1, 2], None).to_string(),
        "malformed: runt: 2 bytes do not hold an Ethernet header len=2"
    );
}

#[test]
fn every_opcode_and_every_captured_frame_has_a_line() {
    let captured = common::captured_frames().into_iter().map(|(_, frame)| frame);
    for frame in samples::all_frames().into_iter().chain(captured) {
        let text = Summary::new(&frame, None).to_string();
        assert!(
            !text.contains('\n') && !text.contains("malformed") && text.contains(" qp=0x"),
            "{text}"
        );
    }
}
