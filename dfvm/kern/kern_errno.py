"""Error numbers, and the one way kernel code reports them: `raise err(ENOENT)`.

The numbers are Linux's, throughout the kernel; an ABI with other numbers translates on the way
out. The system call dispatcher turns the exception into the caller's return value.

ERESTART and EJUSTRETURN never reach a program: the dispatcher acts on them.

Source: DragonFly sys/sys/errno.h for the pseudo errors, Linux uapi asm-generic/errno.h for the
numbers.
"""

from __future__ import annotations

import os
from typing import Final

ERESTART: Final = -1  # a signal came first: make the call again after its handler, if it may be
EJUSTRETURN: Final = -2  # the call has set the caller's registers itself: leave them alone

EPERM: Final = 1  # Operation not permitted
ENOENT: Final = 2  # No such file or directory
ESRCH: Final = 3  # No such process
EINTR: Final = 4  # Interrupted system call
EIO: Final = 5  # Input/output error
ENXIO: Final = 6  # No such device or address
E2BIG: Final = 7  # Argument list too long
ENOEXEC: Final = 8  # Exec format error
EBADF: Final = 9  # Bad file descriptor
ECHILD: Final = 10  # No child processes
EAGAIN: Final = 11  # Resource temporarily unavailable
ENOMEM: Final = 12  # Cannot allocate memory
EACCES: Final = 13  # Permission denied
EFAULT: Final = 14  # Bad address
ENOTBLK: Final = 15  # Block device required
EBUSY: Final = 16  # Device or resource busy
EEXIST: Final = 17  # File exists
EXDEV: Final = 18  # Invalid cross-device link
ENODEV: Final = 19  # No such device
ENOTDIR: Final = 20  # Not a directory
EISDIR: Final = 21  # Is a directory
EINVAL: Final = 22  # Invalid argument
ENFILE: Final = 23  # Too many open files in system
EMFILE: Final = 24  # Too many open files
ENOTTY: Final = 25  # Inappropriate ioctl for device
ETXTBSY: Final = 26  # Text file busy
EFBIG: Final = 27  # File too large
ENOSPC: Final = 28  # No space left on device
ESPIPE: Final = 29  # Illegal seek
EROFS: Final = 30  # Read-only file system
EMLINK: Final = 31  # Too many links
EPIPE: Final = 32  # Broken pipe
EDOM: Final = 33  # Numerical argument out of domain
ERANGE: Final = 34  # Numerical result out of range
EDEADLK: Final = 35  # Resource deadlock avoided
ENAMETOOLONG: Final = 36  # File name too long
ENOLCK: Final = 37  # No locks available
ENOSYS: Final = 38  # Function not implemented
ENOTEMPTY: Final = 39  # Directory not empty
ELOOP: Final = 40  # Too many levels of symbolic links
ENOMSG: Final = 42  # No message of desired type
EIDRM: Final = 43  # Identifier removed
ECHRNG: Final = 44  # Channel number out of range
EL2NSYNC: Final = 45  # Level 2 not synchronized
EL3HLT: Final = 46  # Level 3 halted
EL3RST: Final = 47  # Level 3 reset
ELNRNG: Final = 48  # Link number out of range
EUNATCH: Final = 49  # Protocol driver not attached
ENOCSI: Final = 50  # No CSI structure available
EL2HLT: Final = 51  # Level 2 halted
EBADE: Final = 52  # Invalid exchange
EBADR: Final = 53  # Invalid request descriptor
EXFULL: Final = 54  # Exchange full
ENOANO: Final = 55  # No anode
EBADRQC: Final = 56  # Invalid request code
EBADSLT: Final = 57  # Invalid slot
EBFONT: Final = 59  # Bad font file format
ENOSTR: Final = 60  # Device not a stream
ENODATA: Final = 61  # No data available
ETIME: Final = 62  # Timer expired
ENOSR: Final = 63  # Out of streams resources
ENONET: Final = 64  # Machine is not on the network
ENOPKG: Final = 65  # Package not installed
EREMOTE: Final = 66  # Object is remote
ENOLINK: Final = 67  # Link has been severed
EADV: Final = 68  # Advertise error
ESRMNT: Final = 69  # Srmount error
ECOMM: Final = 70  # Communication error on send
EPROTO: Final = 71  # Protocol error
EMULTIHOP: Final = 72  # Multihop attempted
EDOTDOT: Final = 73  # RFS specific error
EBADMSG: Final = 74  # Bad message
EOVERFLOW: Final = 75  # Value too large for defined data type
ENOTUNIQ: Final = 76  # Name not unique on network
EBADFD: Final = 77  # File descriptor in bad state
EREMCHG: Final = 78  # Remote address changed
ELIBACC: Final = 79  # Can not access a needed shared library
ELIBBAD: Final = 80  # Accessing a corrupted shared library
ELIBSCN: Final = 81  # .lib section in a.out corrupted
ELIBMAX: Final = 82  # Attempting to link in too many shared libraries
ELIBEXEC: Final = 83  # Cannot exec a shared library directly
EILSEQ: Final = 84  # Invalid or incomplete multibyte or wide character
ESTRPIPE: Final = 86  # Streams pipe error
EUSERS: Final = 87  # Too many users
ENOTSOCK: Final = 88  # Socket operation on non-socket
EDESTADDRREQ: Final = 89  # Destination address required
EMSGSIZE: Final = 90  # Message too long
EPROTOTYPE: Final = 91  # Protocol wrong type for socket
ENOPROTOOPT: Final = 92  # Protocol not available
EPROTONOSUPPORT: Final = 93  # Protocol not supported
ESOCKTNOSUPPORT: Final = 94  # Socket type not supported
EOPNOTSUPP: Final = 95  # Operation not supported
EPFNOSUPPORT: Final = 96  # Protocol family not supported
EAFNOSUPPORT: Final = 97  # Address family not supported by protocol
EADDRINUSE: Final = 98  # Address already in use
EADDRNOTAVAIL: Final = 99  # Cannot assign requested address
ENETDOWN: Final = 100  # Network is down
ENETUNREACH: Final = 101  # Network is unreachable
ENETRESET: Final = 102  # Network dropped connection on reset
ECONNABORTED: Final = 103  # Software caused connection abort
ECONNRESET: Final = 104  # Connection reset by peer
ENOBUFS: Final = 105  # No buffer space available
EISCONN: Final = 106  # Transport endpoint is already connected
ENOTCONN: Final = 107  # Transport endpoint is not connected
ESHUTDOWN: Final = 108  # Cannot send after transport endpoint shutdown
ETOOMANYREFS: Final = 109  # Too many references: cannot splice
ETIMEDOUT: Final = 110  # Connection timed out
ECONNREFUSED: Final = 111  # Connection refused
EHOSTDOWN: Final = 112  # Host is down
EHOSTUNREACH: Final = 113  # No route to host
EALREADY: Final = 114  # Operation already in progress
EINPROGRESS: Final = 115  # Operation now in progress
ESTALE: Final = 116  # Stale file handle
EUCLEAN: Final = 117  # Structure needs cleaning
ENOTNAM: Final = 118  # Not a XENIX named type file
ENAVAIL: Final = 119  # No XENIX semaphores available
EISNAM: Final = 120  # Is a named type file
EREMOTEIO: Final = 121  # Remote I/O error
EDQUOT: Final = 122  # Disk quota exceeded
ENOMEDIUM: Final = 123  # No medium found
EMEDIUMTYPE: Final = 124  # Wrong medium type
ECANCELED: Final = 125  # Operation canceled
ENOKEY: Final = 126  # Required key not available
EKEYEXPIRED: Final = 127  # Key has expired
EKEYREVOKED: Final = 128  # Key has been revoked
EKEYREJECTED: Final = 129  # Key was rejected by service
EOWNERDEAD: Final = 130  # Owner died
ENOTRECOVERABLE: Final = 131  # State not recoverable
ERFKILL: Final = 132  # Operation not possible due to RF-kill

EWOULDBLOCK: Final = EAGAIN
ENOTSUP: Final = EOPNOTSUPP

# Making the text costs more than the exception; lookups that fail are common.
_texts: Final[dict[int, str]] = {}


def err(n: int) -> OSError:
    """The exception for error number `n` (positive, or ERESTART or EJUSTRETURN)."""
    text = _texts.get(n)
    if text is None:
        text = _texts[n] = os.strerror(n) if n > 0 else f"kernel pseudo error {n}"
    return OSError(n, text)
