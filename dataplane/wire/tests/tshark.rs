//! tshark as a second opinion on what this crate writes.

mod common;

use common::{pcap, samples, tshark};
use rnic_wire::*;

#[test]
fn tshark_reads_a_frame_of_every_opcode_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("every_opcode.pcap");
    let frames = samples::all_frames();
    pcap::write(&path, &frames);
    assert_eq!(tshark::assert_agrees(&path), frames.len());
}

#[test]
fn tshark_reads_every_kind_of_syndrome_as_it_was_written() {
    let syndromes = [
        Syndrome::ACK,
        Syndrome::Ack { credits: 17 },
        Syndrome::RnrNak { timer: 0 },
        Syndrome::RnrNak { timer: 12 },
        Syndrome::Nak(NakCode::PsnSequenceError),
        Syndrome::Nak(NakCode::InvalidRequest),
        Syndrome::Nak(NakCode::RemoteAccessError),
        Syndrome::Nak(NakCode::RemoteOperationalError),
        Syndrome::Nak(NakCode::InvalidRdRequest),
    ];
    let ack = Opcode::new(Transport::Rc, Operation::Acknowledge);
    let frames: Vec<Vec<u8>> = syndromes
        .into_iter()
        .map(|syndrome| {
            let mut repr = samples::repr(ack, samples::v4(), VlanTags::NONE);
            repr.headers.aeth = Some(Aeth {
                syndrome,
                msn: 0xFF_FFFF,
            });
            samples::emit(&repr, &[])
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("syndromes.pcap");
    pcap::write(&path, &frames);
    assert_eq!(tshark::assert_agrees(&path), frames.len());

    for (syndrome, seen) in syndromes.iter().zip(tshark::dissect(&path)) {
        assert_eq!(seen["infiniband.aeth.syndrome"], syndrome.to_u8().to_string());
    }
}

#[test]
fn tshark_and_this_crate_agree_on_the_captures_from_linux() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/captures");
    for file in [
        "rc_send_bw.pcap",
        "rc_read_bw.pcap",
        "cm_rstream_writeimm.pcap",
        "v6_rc_send_pingpong.pcap",
    ] {
        assert!(tshark::assert_agrees(&dir.join(file)) > 0);
    }
}
