//! Compares what rnic-wire reads in a capture with what tshark reads in it.

use super::pcap;
use rnic_wire::*;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

const FIELDS: &[&str] = &[
    "_ws.malformed",
    "eth.src",
    "eth.dst",
    "vlan.id",
    "ieee8021ad.id",
    "ip.src",
    "ip.dst",
    "ip.len",
    "ip.checksum.status",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.plen",
    "udp.srcport",
    "udp.length",
    "infiniband.bth.opcode",
    "infiniband.bth.se",
    "infiniband.bth.m",
    "infiniband.bth.padcnt",
    "infiniband.bth.tver",
    "infiniband.bth.p_key",
    "infiniband.bth.destqp",
    "infiniband.bth.a",
    "infiniband.bth.psn",
    "infiniband.deth.q_key",
    "infiniband.deth.srcqp",
    "infiniband.reth.va",
    "infiniband.reth.r_key",
    "infiniband.reth.dmalen",
    "infiniband.atomiceth.swapdt",
    "infiniband.atomiceth.cmpdt",
    "infiniband.aeth.syndrome",
    "infiniband.aeth.msn",
    "infiniband.atomicacketh.origremdt",
    "infiniband.immdt",
    "infiniband.ieth",
    "infiniband.payload",
    "infiniband.invariant.crc",
];

/// Protocols that tshark guesses to lie in any payload of RDMA, and then finds malformed.
const GUESSERS: &[&str] = &[
    "smc",
    "smb_direct",
    "rpcordma",
    "nvme-rdma",
    "lnet",
    "iser",
    "infiniband.eoib",
    "infiniband_sdp",
    "fcoib",
];

/// What tshark found in one frame, by field name; fields not in the frame are missing.
pub type Dissection = HashMap<&'static str, String>;

fn tshark(args: &[&str]) -> Vec<u8> {
    let output = match Command::new("tshark").args(args).output() {
        Ok(output) => output,
        Err(error) => panic!("tshark cannot be run ({error}); `make deps` installs it"),
    };
    assert!(
        output.status.success(),
        "tshark {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Lets tshark dissect a capture, pcap or pcapng.
pub fn dissect(capture: &Path) -> Vec<Dissection> {
    let path = capture.to_str().expect("a path in UTF-8");
    let mut args = vec![
        "-n",
        "-r",
        path,
        "-T",
        "fields",
        "-E",
        "separator=/t",
        "-E",
        "occurrence=a",
    ];
    args.extend(["-o", "ip.check_checksum:TRUE"]);
    for protocol in GUESSERS {
        args.extend(["--disable-protocol", protocol]);
    }
    for field in FIELDS {
        args.extend(["-e", field]);
    }
    let text = String::from_utf8(tshark(&args)).expect("tshark writes UTF-8");
    text.lines()
        .map(|line| {
            let values = line.split('\t').map(str::to_owned);
            FIELDS
                .iter()
                .copied()
                .zip(values)
                .filter(|(_, value)| !value.is_empty())
                .collect()
        })
        .collect()
}

/// Asserts that every RoCE frame of a capture (pcap or pcapng) reads the same to tshark as to rnic-wire, that tshark
/// calls none malformed and that every ICRC is right. Returns how many RoCE frames there were.
pub fn assert_agrees(capture: &Path) -> usize {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let plain = dir.path().join("plain.pcap");
    let (from, to) = (capture.to_str().expect("UTF-8"), plain.to_str().expect("UTF-8"));
    tshark(&["-r", from, "-F", "pcap", "-w", to]);
    let frames = pcap::read(&plain);
    let dissections = dissect(capture);
    assert_eq!(
        frames.len(),
        dissections.len(),
        "tshark and the pcap reader see different numbers of frames"
    );
    let mut compared = 0;
    for (i, (bytes, seen)) in frames.iter().zip(&dissections).enumerate() {
        match classify(bytes, None) {
            Kind::Roce(frame) => {
                assert!(
                    verify_icrc(&TableCrc, frame.datagram()),
                    "frame {}: wrong ICRC",
                    i + 1
                );
                compare(&format!("frame {} ({frame})", i + 1), &frame, seen);
                compared += 1;
            }
            Kind::Other => {}
            broken => panic!("frame {}: {broken:?}", i + 1),
        }
    }
    compared
}

/// The number in a field, decimal or hexadecimal.
fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => match text {
            "True" => Ok(1),
            "False" => Ok(0),
            decimal => decimal.parse(),
        },
    };
    parsed.unwrap_or_else(|e| panic!("{text:?} is no number: {e}"))
}

fn compare(what: &str, frame: &Frame<'_>, seen: &Dissection) {
    assert!(
        !seen.contains_key("_ws.malformed"),
        "{what}: tshark calls it malformed: {seen:?}"
    );
    let text = |field: &str, ours: String| {
        let theirs = seen
            .get(field)
            .unwrap_or_else(|| panic!("{what}: tshark finds no {field}"));
        // tshark lists some fields twice, once as a header and once inside it.
        let theirs = if ours.contains(',') {
            theirs
        } else {
            theirs.split(',').next().unwrap_or_default()
        };
        assert_eq!(theirs, ours, "{what}: {field}");
    };
    let num = |field: &str, ours: u64| {
        let theirs = seen
            .get(field)
            .unwrap_or_else(|| panic!("{what}: tshark finds no {field}: {seen:?}"));
        assert_eq!(number(theirs), ours, "{what}: {field}");
    };
    compare_envelope(frame, &text, &num);

    let Headers { bth, .. } = *frame.headers();
    num("infiniband.bth.opcode", bth.opcode.to_u8() as u64);
    num("infiniband.bth.se", bth.solicited as u64);
    num("infiniband.bth.m", bth.mig_req as u64);
    num("infiniband.bth.padcnt", bth.pad as u64);
    num("infiniband.bth.tver", bth.tver as u64);
    num("infiniband.bth.p_key", bth.pkey as u64);
    num("infiniband.bth.destqp", bth.dest_qpn as u64);
    num("infiniband.bth.a", bth.ack_req as u64);
    num("infiniband.bth.psn", bth.psn.get() as u64);
    if knows(bth.opcode) {
        compare_extensions(frame, &text, &num);
    }
}

/// Whether tshark 4.0 dissects what follows the BTH. It knows XRC's opcodes by name only, CNPs by their opcode in a draft
/// (0x80), FLUSH, ATOMIC WRITE and selective ACKs not at all.
fn knows(opcode: Opcode) -> bool {
    let unknown = matches!(opcode.operation, Operation::Flush | Operation::AtomicWrite);
    !unknown
        && !matches!(
            opcode.transport,
            Transport::Xrc | Transport::Cnp | Transport::Rnic
        )
}

fn compare_envelope(frame: &Frame<'_>, text: &impl Fn(&str, String), num: &impl Fn(&str, u64)) {
    text("eth.src", frame.link().src.to_string());
    text("eth.dst", frame.link().dst.to_string());
    for (tpid, field) in [(Tpid::Customer, "vlan.id"), (Tpid::Service, "ieee8021ad.id")] {
        let tags = frame.link().tags;
        let tags = tags.as_slice().iter().filter(|tag| tag.tpid == tpid);
        let vids: Vec<String> = tags.map(|tag| tag.vid().to_string()).collect();
        if !vids.is_empty() {
            text(field, vids.join(","));
        }
    }
    let udp_len = (frame.ib().len() + UDP_LEN + ICRC_LEN) as u64;
    match frame.net() {
        Net::V4(ip) => {
            text("ip.src", ip.src.to_string());
            text("ip.dst", ip.dst.to_string());
            num("ip.len", udp_len + IPV4_LEN as u64);
            num("ip.checksum.status", 1);
        }
        Net::V6(ip) => {
            text("ipv6.src", ip.src.to_string());
            text("ipv6.dst", ip.dst.to_string());
            num("ipv6.plen", udp_len);
        }
    }
    num("udp.srcport", frame.udp_src_port() as u64);
    num("udp.length", udp_len);
}

fn compare_extensions(frame: &Frame<'_>, text: &impl Fn(&str, String), num: &impl Fn(&str, u64)) {
    let h = frame.headers();
    if let Some(deth) = h.deth {
        num("infiniband.deth.q_key", deth.qkey as u64);
        num("infiniband.deth.srcqp", deth.src_qpn as u64);
    }
    if let Some(reth) = h.reth {
        num("infiniband.reth.va", reth.va);
        num("infiniband.reth.r_key", reth.rkey as u64);
        num("infiniband.reth.dmalen", reth.dma_len as u64);
    }
    if let Some(atomic) = h.atomic {
        // tshark gives the two fields which an AtomicETH shares with the RETH the RETH's names.
        num("infiniband.reth.va", atomic.va);
        num("infiniband.reth.r_key", atomic.rkey as u64);
        num("infiniband.atomiceth.swapdt", atomic.swap_or_add);
        num("infiniband.atomiceth.cmpdt", atomic.compare);
    }
    if let Some(aeth) = h.aeth {
        num("infiniband.aeth.syndrome", aeth.syndrome.to_u8() as u64);
        num("infiniband.aeth.msn", aeth.msn as u64);
    }
    if let Some(ack) = h.atomic_ack {
        num("infiniband.atomicacketh.origremdt", ack.original);
    }
    if let Some(imm) = h.imm {
        text("infiniband.immdt", format!("{imm:08x}"));
    }
    if let Some(rkey) = h.ieth {
        text("infiniband.ieth", format!("{rkey:08x}"));
    }
    num(
        "infiniband.invariant.crc",
        u32::from_be_bytes(frame.icrc()) as u64,
    );
}
