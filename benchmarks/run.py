"Everything that is quoted, measured again: python benchmarks/run.py [encode align pseudolabels describe accuracy descriptions longtail calibration review resume step_time]"
import subprocess, sys
from pathlib import Path

ALL = ['encode','align','pseudolabels','describe','accuracy','descriptions','longtail','calibration','review','resume','step_time']

if __name__=='__main__':
    here,names = Path(__file__).parent,sys.argv[1:] or ALL
    if unknown := [n for n in names if n not in ALL]: sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}")
    for n in names:
        print(f'== {n}', flush=True)
        subprocess.run([sys.executable, here/f'{n}.py'], check=True)
