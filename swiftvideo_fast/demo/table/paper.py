"""The paper's numbers and orderings: Wan 1.3B, FVD on OpenVid-1M, VBench-I2V."""

from swiftvideo_fast.demo.table.work import TEACHER

OURS, CCD_DA = "CCD + DA + TA", "CCD + DA"
FVD = {                                                     # Tables 1 and 2
    (TEACHER, 25): 98.06, (TEACHER, 8): 150.82, (TEACHER, 4): 321.95,
    ("LCM", 4): 192.93, ("LCM", 2): 591.51, ("PCM", 4): 198.56, ("DMD2", 4): 167.42,
    ("OSV", 4): 146.59, ("OSV", 2): 471.38, (OURS, 4): 118.89, (OURS, 2): 199.61,
    ("DA", 4): 163.54, ("DCD + DA", 4): 151.23, ("CCD", 4): 172.54, (CCD_DA, 4): 136.14,
    ("CCD + DA, uniform(0, 1)", 4): 140.36, ("CCD + DA, lognorm(-0.8, 1.0)", 4): 138.5,
}
VBENCH = {                              # Table 3: temporal quality, frame quality, I2V subject, background
    (TEACHER, 25): (86.48, 68.22, 98.91, 98.16), (TEACHER, 8): (85.2, 67.25, 98.79, 98.16),
    (TEACHER, 4): (83.89, 64.43, 98.63, 98.08), ("LCM", 4): (84.06, 65.05, 98.69, 98.11),
    ("LCM", 2): (81.89, 59.09, 98.38, 97.93), ("PCM", 4): (83.92, 64.85, 98.69, 98.07),
    ("DMD2", 4): (84.21, 65.32, 98.74, 98.09), ("OSV", 4): (84.37, 66.41, 98.84, 98.10),
    ("OSV", 2): (82.52, 61.11, 98.54, 97.95), (OURS, 4): (85.54, 67.82, 99.01, 98.17),
    (OURS, 2): (84.02, 65.63, 98.79, 98.11),
}
ORDERINGS = [                           # (where, better, worse), by FVD
    ("Table 1", (TEACHER, 8), (TEACHER, 4)), ("Table 1", (OURS, 4), (TEACHER, 4)),
    ("Table 1", (OURS, 4), (TEACHER, 8)), ("Table 1", (OURS, 2), (TEACHER, 4)),
    ("Table 1", ("LCM", 4), (TEACHER, 4)), ("Table 1", ("PCM", 4), (TEACHER, 4)),
    ("Table 1", ("DMD2", 4), (TEACHER, 4)), ("Table 1", ("OSV", 4), (TEACHER, 4)),
    ("Table 1", ("LCM", 4), ("PCM", 4)), ("Table 1", ("DMD2", 4), ("LCM", 4)),
    ("Table 1", ("OSV", 4), ("DMD2", 4)), ("Table 1", (OURS, 4), ("OSV", 4)),
    ("Table 1", ("OSV", 2), ("LCM", 2)), ("Table 1", (OURS, 2), ("OSV", 2)),
    ("Table 2a", ("DCD + DA", 4), ("DA", 4)), ("Table 2a", (CCD_DA, 4), ("DCD + DA", 4)),
    ("Table 2b", (CCD_DA, 4), ("CCD", 4)), ("Table 2c", (OURS, 4), (CCD_DA, 4)),
    ("Table 2d", (CCD_DA, 4), ("CCD + DA, uniform(0, 1)", 4)),
    ("Table 2d", (CCD_DA, 4), ("CCD + DA, lognorm(-0.8, 1.0)", 4)),
    ("Figure 7", (CCD_DA, 8), (CCD_DA, 4)), ("Figure 7", (CCD_DA, 4), (CCD_DA, 2)),
    ("Figure 7", (CCD_DA, 2), (CCD_DA, 1)),
]
