"""The words that `signs` show, of two to four letters, and which of them training never sees."""

from __future__ import annotations

import hashlib
from typing import Final

_TWO: Final = "AM AN AS AT BE BY DO GO HE HI IF IN IS IT ME MY NO OF OH OK ON OR OX PI SO TO UP US WE"
_THREE: Final = """
ACE ADD AGE AIR ANT APE ARM ART ASH ASK BAG BAR BAT BED BEE BIG BIN BOX BOY BUS BUY CAB CAP CAR CAT COW CRY CUB CUP CUT
DAY DEN DIG DOG DOT DRY DUO EAR EAT EGG ELM END EYE FAN FAR FAX FIG FIN FIT FIX FLY FOG FOX FUN GAP GAS GEM GYM HAT HEN
HIP HOT HUB HUT ICE INK INN JAM JAR JET JOB JOY KEY KID KIT LAB LAW LEG LID LIP LOG MAP MIX MUD MUG NAP NET NEW NUT OAK
OIL OLD ONE OWL PAN PEN PET PIE PIN POT PUB QUO RAM RED RIB ROW RUG RUN SAW SEA SKY SUN TAP TAX TEA TEN TIE TIP TOP TOY
TUB TWO URN VAN VET VOW WAX WEB WIG WIN YAK YES ZAP ZIP ZOO
"""
_FOUR: Final = """
ACID AREA AUTO BABY BACK BAKE BALL BAND BANK BARN BATH BEAR BELL BIKE BIRD BLUE BOAT BOLT BOOK BUSY CAFE CAKE CALL CAMP
CARD CASH CAVE CITY CLUB COAL COIN COLD COOK CORN CROW DARK DATE DEEP DESK DISC DOCK DOOR DOWN DRUM DUCK EAST EASY EDGE
EXIT FACE FARM FAST FIRE FISH FIVE FLAG FLAT FOOD FORK FREE FROG FUEL GAME GATE GIFT GOAT GOLD GOLF HALF HALL HAND HARP
HAWK HELP HIGH HILL HOME HOOK HORN HOUR ICON IDEA IDLE INTO IRIS IRON ITEM JAZZ JOIN JUMP JURY KEEP KELP KING KITE KNOT
LADY LAKE LAMP LAND LEAF LIFT LIME LION LOCK LOOP LUCK MAIN MAZE MENU MILK MINT MOON NEWS NINE NODE NOON NORM OBEY OKAY
ONCE ONLY OPEN OVAL OVEN OXEN PACK PARK PATH PIER PINK POLE POND POOL PORT QUIT QUIZ RAIN RICE RIDE RING ROAD ROCK ROOF
ROOM ROSE SAFE SALT SAND SEAT SHIP SHOP SIGN SLOW SNOW SOUP STAR STOP SURF SWIM TAXI TEAM TENT TIDE TIME TOUR TOWN TRAM
TREE TWIN UNIT UPON URGE USED VASE VERY VEST VIEW VINE WALK WARM WASH WEST WHAT WIFI WIND WOLF WOOD WRAP YARD YEAR YOGA
ZERO ZONE ZOOM
"""

WORDS: Final[tuple[str, ...]] = tuple(f"{_TWO} {_THREE} {_FOUR}".split())
"""All of them, each once, in capitals."""
LONGEST: Final = 4
ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _held_out() -> tuple[str, ...]:
    """About one word in seven, by a hash of it, whose every letter some other word has in the same place.

    In the same place: the same letter, as far from the start, in a word of the same length. Who has never seen a Q in
    the middle can't be asked to write one there.
    """
    places: dict[tuple[int, int, str], int] = {}
    for word in WORDS:
        for place in _places(word):
            places[place] = places.get(place, 0) + 1
    chosen: list[str] = []
    for word in sorted(WORDS, key=_hash):
        if len(chosen) < len(WORDS) // 7 and all(places[place] > 1 for place in _places(word)):
            chosen.append(word)
            for place in _places(word):
                places[place] -= 1
    return tuple(sorted(chosen, key=WORDS.index))


def _places(word: str) -> list[tuple[int, int, str]]:
    return [(len(word), i, letter) for i, letter in enumerate(word)]


def _hash(word: str) -> bytes:
    return hashlib.blake2b(word.encode(), digest_size=8).digest()


HELD_OUT: Final[tuple[str, ...]] = _held_out()
"""Words that no training example shows; half of the validation examples do."""
TRAINED: Final[tuple[str, ...]] = tuple(word for word in WORDS if word not in HELD_OUT)
