"All metadata is in settings.ini; this only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
import shlex, setuptools

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
def reqs(name): return shlex.split(cfg.get(name, ''))

names = ['starter','llm','hf','review','conformal','distributed','log']
extras = {n: reqs(f'{n}_requirements') for n in names}
# the services that `log` reports to are for those who use them: no test needs them
extras |= dict(demo=extras['starter']+extras['llm'], dev=sum((extras[n] for n in names if n!='log'), reqs('dev_requirements')))
readme = Path('README.md')

setuptools.setup(
    version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    packages=setuptools.find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']),
    include_package_data=False, package_data={cfg['lib_path']: ['samples/*', 'templates/*', 'descriptions/*']},
    install_requires=reqs('requirements'), extras_require=extras,
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    entry_points={'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"], 'console_scripts': [f"pla={cfg['lib_path']}.cli:main"]},
    zip_safe=False)
