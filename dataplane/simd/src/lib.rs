//! CRC-32 and fused copy-and-CRC kernels chosen at run time.
