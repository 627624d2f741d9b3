//! RoCEv2 frames: views, emit, opcode legality and ICRC.
