# What a machine that starts as a PC runs before the guest's program: from real mode to 64-bit mode at CPL 3.
#
# It lies at guest-physical 0xf0000 (and at the top of 4 GiB, where a PC starts: the jump from there is not part of it).
# Program, page tables and control page are in memory already. Descriptors have their accessed bits set, because the
# processor could not set them in a table that is read-only memory. Interrupts stay off; nothing is ever handled.
#
# The same in Rust: src/guests/kvm/program.rs (where things lie), src/guests/kvm/registers.rs (the mode).

.set BASE, 0xf0000
.set CONTROL, 0x1000
.set CODE, 0x10000
.set TABLES, 0x100000
# Any memory that the guest does not use: five words of it are written.
.set STACK, 0x8000

.pushsection .rodata.pageferry_firmware, "a", @progbits
.hidden pageferry_firmware
.global pageferry_firmware
.hidden pageferry_firmware_end
.global pageferry_firmware_end

.code16
pageferry_firmware:
    cli
    mov     ax, cs
    mov     ds, ax
# lgdt and the far jumps as bytes: their addresses are distances from the start.
    .byte   0x0f, 0x01, 0x16
    .word   .Lpageferry_gdt_pointer - pageferry_firmware
# Protection on, caches on.
    mov     eax, cr0
    and     eax, 0x9fffffff
    or      eax, 1
    mov     cr0, eax
    .byte   0x66, 0xea
    .long   BASE + .Lpageferry_protected - pageferry_firmware
    .word   0x08

.code32
.Lpageferry_protected:
    mov     ax, 0x10
    mov     ds, ax
    mov     es, ax
    mov     ss, ax
# Physical address extension, the tables, long mode, paging.
    mov     eax, 0x20
    mov     cr4, eax
    mov     eax, TABLES
    mov     cr3, eax
    mov     ecx, 0xc0000080
    mov     eax, 0x100
    xor     edx, edx
    wrmsr
    mov     eax, cr0
    or      eax, 0x80000000
    mov     cr0, eax
    .byte   0xea
    .long   BASE + .Lpageferry_long - pageferry_firmware
    .word   0x18

.code64
.Lpageferry_long:
    mov     esp, STACK
    push    0x33
    push    0
    push    2
    push    0x2b
    push    CODE
    mov     ebx, CONTROL
    iretq

.balign 8
# 0x08 and 0x18: code of the firmware, 32 and 64 bits; 0x10: its data; 0x28 and 0x30: code and data of the program.
.Lpageferry_gdt:
    .quad   0
    .quad   0x00cf9b000000ffff
    .quad   0x00cf93000000ffff
    .quad   0x00af9b000000ffff
    .quad   0
    .quad   0x00affb000000ffff
    .quad   0x00cff3000000ffff
.Lpageferry_gdt_pointer:
    .word   . - .Lpageferry_gdt - 1
    .long   BASE + .Lpageferry_gdt - pageferry_firmware

pageferry_firmware_end:
.popsection
